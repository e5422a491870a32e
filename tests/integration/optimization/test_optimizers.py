"""DSPy's optimizers in a race for one budget: with the stand-in, and over HTTP with several calls under way."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import dspy
import pytest

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS
from autoopt_pipeline.errors import InvalidConfig, LMNotConfigured
from autoopt_pipeline.evaluation.runner import answer_all, dspy_example
from autoopt_pipeline.evaluation.split import Split, split_examples
from autoopt_pipeline.lm.choice import resolve_teacher
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import ModuleSpec, Provenance
from autoopt_pipeline.optimization.optimizers import (
    bootstrappers,
    demo_pickers,
    feedback_metric,
    improvers,
    pick_coverage,
    scorer,
)
from autoopt_pipeline.optimization.search import Search, check_budget, comparison_calls, search
from autoopt_pipeline.registry.serialization import deserialize, queries_shown, serialize
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import LMSettings, RoutingConfigUnified, with_field
from tests.support.labeled_requests import CONFIG, LABELS, ROUTING, UNIFIED, context_of, examples, split_of, stand_in
from tests.support.llm_server import LLMServer, llm_server


def searched(
    split: Split,
    lm: MeteredLM,
    teacher: MeteredLM | None = None,
    *,
    spec: ModuleSpec = ROUTING,
    config: RoutingConfigUnified = CONFIG,
    incumbent: dspy.Module | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Search:
    start = spec.build_program(LABELS)
    return search(
        spec, config, LABELS, split, incumbent or start, start, lm, teacher or lm, say, PhaseTracker(lm.meter)
    )


# --- demos ---


def test_labels_take_turns_among_the_demos_and_better_ones_come_first() -> None:
    made = examples(ROUTING, 80)
    chosen = pick_coverage(made, 12, lambda e: e.label)
    assert Counter(e.label for e in chosen) == dict.fromkeys(SAMPLE_AGENTS, 3)
    worse = tuple(replace(e, provenance=Provenance.OUTCOME, span_id=f"x{e.span_id}") for e in made)
    chosen = pick_coverage([*worse, *made], 12, lambda e: e.label)
    assert {e.provenance for e in chosen[:4]} == {Provenance.HUMAN}


def test_every_predictor_of_a_program_gets_demos_with_its_own_classes_and_fields_only() -> None:
    context = context_of(UNIFIED, train=120)
    programs = {o.name: o.compile() for o in [*demo_pickers(context), *list(bootstrappers(context))[:1]]}
    for program in list(programs.values())[1:]:
        for predictor in program.predictors():
            assert predictor.demos
            assert all(set(demo.keys()) <= set(predictor.signature.fields) for demo in predictor.demos)
    by_name = dict(programs["coverage-16"].named_predictors())
    modalities = Counter(demo["modality"] for demo in by_name["modality.decide"].demos)
    agents = Counter(demo["agent"] for demo in by_name["routing.decide"].demos)
    assert max(modalities.values()) - min(modalities.values()) <= 1
    assert set(agents.values()) == {4}
    # A demo that shows a plan as text would teach to answer so.
    assert all(isinstance(demo["agents"], list) for demo in by_name["workflow.decide"].demos)


@pytest.mark.parametrize("spec", [ROUTING, UNIFIED], ids=["routing", "unified"])
def test_bootstrapped_demos_are_of_training_queries_and_fully_right(spec: ModuleSpec) -> None:
    context = context_of(spec)
    right = {e.query: e.right for e in context.train}
    program = list(bootstrappers(context))[1].compile()
    assert queries_shown(program) <= right.keys()
    for predictor in program.predictors():
        for demo in predictor.demos:
            shown = {name: demo[name] for name in spec.outputs if name in demo and name in predictor.signature.fields}
            own = {name: value for name, value in shown.items() if name in predictor.signature.output_fields}
            assert own == {name: right[demo["query"]][name] for name in own}
    assert program.dump_state() != context.start.dump_state()


def test_each_bootstrap_differs_and_is_the_same_again() -> None:
    def digests() -> list[str]:
        return [serialize(ROUTING, "acme", LABELS, o.compile()).digest for o in bootstrappers(context_of(ROUTING))]

    first = digests()
    assert len(set(first)) == len(first)
    assert digests() == first


def test_what_the_data_is_too_little_for_is_left_out() -> None:
    few, some, enough = (context_of(ROUTING, train=count) for count in (29, 49, 100))
    assert not list(bootstrappers(few))
    assert not list(bootstrappers(context_of(ROUTING, bootstrapped=0)))
    assert list(bootstrappers(some))
    model = replace(stand_in(), is_stand_in=False)
    some, enough = (replace(context, lm=model, teacher=model) for context in (some, enough))
    assert not list(improvers(some))
    assert [improver.name for improver in improvers(enough)] == ["gepa", "miprov2"]


@pytest.mark.parametrize("role", ["lm", "teacher"])
def test_with_the_stand_in_nothing_searches_for_instructions(role: str) -> None:
    model = replace(stand_in(), is_stand_in=False)
    context = replace(context_of(ROUTING, train=100), lm=model, teacher=model)
    assert not list(improvers(replace(context, **{role: stand_in()})))


def test_a_predictor_without_right_answers_gets_no_labelled_demos_and_the_feedback_of_the_whole() -> None:
    spec = replace(ROUTING, program="tests.support.unusual_parts:TwoSteps")
    context = replace(context_of(ROUTING), spec=spec, start=spec.build_program(LABELS))
    for optimizer in list(demo_pickers(context))[1:]:
        program = optimizer.compile()
        assert program.think.demos == []
        assert program.routing.decide.demos
    program = next(bootstrappers(context)).compile()
    assert all("thoughts" in demo for demo in program.think.demos)
    gold = dspy_example(spec, context.train[0])
    given = dspy.Prediction(agent="nobody", confidence=1.0)
    judge = feedback_metric(spec, program)
    assert judge(gold, given, None, "think", None).feedback == judge(gold, given).feedback != "Right."


# --- instructions ---


def test_demos_of_predictors_that_are_told_a_part_are_recognised_as_their_examples() -> None:
    spec = replace(ROUTING, program="tests.support.unusual_parts:TitleThenBody")
    context = context_of(ROUTING)
    train = [replace(e, inputs={"title": f"request {i}", "body": e.query}) for i, e in enumerate(context.train)]
    context = replace(context, spec=spec, start=spec.build_program(LABELS), train=train)
    asked = {e.query for e in train}
    for optimizer in [*list(demo_pickers(context))[1:], next(bootstrappers(context))]:
        program = optimizer.compile()
        stored = deserialize(spec, LABELS, serialize(spec, "acme", LABELS, program))
        assert program.label.demos
        assert queries_shown(stored) == queries_shown(program) <= asked
    assert program.topic.demos  # what was bootstrapped has topics too
    shown = queries_shown(stored)
    judged = split_examples(train, max_holdout=999, max_dev=999, max_train=999, shown=shown)
    assert not shown.intersection(each.example.query for each in (*judged.holdout, *judged.guard))


def test_feedback_says_in_words_what_is_wrong() -> None:
    judge = feedback_metric(UNIFIED, UNIFIED.build_program(LABELS))
    right = {"modality": "video", "agent": "search_agent", "agents": ["search_agent"], "pattern": "sequential"}
    gold = dspy_example(UNIFIED, replace(examples(UNIFIED, 1)[0], right=right))
    given = dspy.Prediction(
        modality="video", agent="support_agent", agents=["search_agent", "report_agent"], pattern="sequential"
    )
    wrong_plan = 'Wrong: agents is ["search_agent", "report_agent"], right is ["search_agent"].'
    wrong_agent = 'Wrong: agent is "support_agent", right is "search_agent".'
    assert judge(gold, given).feedback == f"{wrong_plan} {wrong_agent}"
    assert judge(gold, given, None, "routing.decide", None).feedback == wrong_agent
    assert judge(gold, given, None, "modality.decide", None).feedback == "Right."
    assert judge(gold, given).score == judge(gold, given, None, "modality.decide", None).score == pytest.approx(0.5)
    assert judge(gold, dspy.Prediction(**right)).toDict() == {"score": 1.0, "feedback": "Right."}
    assert judge(gold, dspy.Prediction()).score == scorer(UNIFIED)(gold, dspy.Prediction()) == 0.0


def test_what_nobody_said_is_right_completes_a_demo_and_judges_no_answer() -> None:
    spec = get_module("cross_modal")
    known, assumed = {"fuse": "fuse"}, {"primary": "video", "secondary": "text"}
    gold = dspy_example(spec, replace(examples(UNIFIED, 1)[0], right=known, label="fuse", assumed=assumed))
    assert {**gold.toDict()}.items() >= {**known, **assumed}.items()
    given = dspy.Prediction(fuse="fuse", primary="audio", secondary="image")
    assert scorer(spec)(gold, given) == 1.0
    judge = feedback_metric(spec, spec.build_program(spec.labels or ()))
    assert judge(gold, given).feedback == "Right."


@pytest.mark.parametrize("improver", ["gepa", "miprov2"])
def test_a_search_for_instructions_leaves_a_program_its_demos(improver: str) -> None:
    context = context_of(ROUTING, train=120)
    model = replace(context.lm, is_stand_in=False)
    context = replace(context, lm=model, teacher=model)
    (leader,) = (o.compile() for o in demo_pickers(context) if o.name == "coverage-16")
    before = leader.dump_state()
    (search_instructions,) = (each for each in improvers(context) if each.name == improver)
    better = search_instructions.compile(leader)
    assert leader.dump_state() == before
    assert [dict(d) for d in better.predictors()[0].demos] == [dict(d) for d in leader.predictors()[0].demos]


# --- the race ---


@pytest.fixture(scope="module")
def split() -> Split:
    return split_of(ROUTING, train=110, dev=60, holdout=50)


@pytest.fixture
def quiet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_finalist_beats_the_incumbent_and_every_cost_is_told(
    split: Split, quiet_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = stand_in()
    found = searched(split, lm)
    assert found.finalist
    (winner,) = [tried for tried in found.tried if tried.dropped_after is None]
    assert winner.optimizer == found.finalist.optimizer
    assert winner.judged_on == 60
    assert winner.dev_score > found.incumbent_dev_score
    assert all(tried.judged_on == tried.dropped_after for tried in found.tried if tried is not winner)
    told = sum(tried.making_calls + tried.judging_calls for tried in found.tried)
    repeated = sum(int(note.split()[-3]) for note in found.notes)
    assert lm.meter.calls == 60 + told + repeated
    assert found.finalist.stored.digest == serialize(ROUTING, "acme", LABELS, found.finalist.program).digest
    assert capsys.readouterr().out == ""
    assert not list(quiet_folder.iterdir())


def test_a_race_costs_clearly_less_than_one_random_search() -> None:
    lm = stand_in()
    searched(split_of(ROUTING, train=200, dev=100), lm)
    assert lm.meter.calls < 0.7 * 19 * 100


def test_where_the_incumbent_is_best_there_is_no_finalist() -> None:
    split = split_of(ROUTING, train=49, dev=40)
    first = searched(split, stand_in())
    assert first.finalist
    again = searched(split, stand_in(), incumbent=first.finalist.program)
    assert again.finalist is None
    assert again.incumbent_dev_score > first.incumbent_dev_score
    assert all(tried.dropped_after is not None for tried in again.tried)


def test_a_composed_program_is_raced_as_a_whole() -> None:
    split, lm = split_of(UNIFIED, train=50, dev=40), stand_in()
    config = with_field(CONFIG, "dspy_max_bootstrapped_demos", "1")
    found = searched(split, lm, spec=UNIFIED, config=config)
    assert found.finalist
    assert set(queries_shown(found.finalist.program)) <= {e.query for e in split.train}
    assert all(tried.judging_calls <= 3 * tried.judged_on for tried in found.tried)


def test_a_comparison_of_programs_with_three_predictors_takes_three_times_the_calls() -> None:
    split = split_of(UNIFIED, train=20, dev=20, holdout=10)
    assert comparison_calls(split, UNIFIED.build_program(LABELS)) == 70
    least = 70 + 60
    check_budget(with_field(CONFIG, "budget.max_lm_calls", str(least)), split, UNIFIED.build_program(LABELS))
    with pytest.raises(InvalidConfig, match="at least 130 calls are needed"):
        check_budget(with_field(CONFIG, "budget.max_lm_calls", str(least - 1)), split, UNIFIED.build_program(LABELS))


@dataclass(frozen=True)
class Said:
    """A line of a race's story, with what was spent by then."""

    line: str
    calls: int
    tokens: int


def told(split: Split, lm: MeteredLM) -> tuple[Search, list[Said]]:
    """A race in which MIPROv2 takes part, with its story."""
    story: list[Said] = []
    lm = replace(lm, is_stand_in=False)
    of_prompts = CONFIG.model_copy(update={"local_router": False})
    found = searched(
        split, lm, config=of_prompts, say=lambda line: story.append(Said(line, lm.meter.calls, lm.meter.tokens))
    )
    return found, story


@pytest.fixture(scope="module")
def whole_story() -> tuple[Split, list[Said]]:
    split = split_of(ROUTING, train=110, dev=60)
    return split, told(split, stand_in())[1]


@pytest.mark.parametrize("arm", ["labeled-few-shot-20", "bootstrap-few-shot-3", "+ gepa", "+ miprov2"])
def test_a_budget_that_ends_in_the_middle_of_an_arm_leaves_the_best_so_far(
    whole_story: tuple[Split, list[Said]], arm: str
) -> None:
    split, story = whole_story
    steps = [(after.tokens - before.tokens, number) for number, (before, after) in enumerate(pairwise(story), 1)]
    _, end = max((tokens, number) for tokens, number in steps if arm in story[number].line)
    upto = pairwise(story[: end + 1])
    largest = max((after.tokens - before.tokens) // (after.calls - before.calls or 1) for before, after in upto)
    held_back = comparison_calls(split, ROUTING.build_program(LABELS)) * largest
    middle = (story[end - 1].tokens + story[end].tokens) // 2
    found, shorter = told(split, stand_in(max_tokens=middle + held_back))
    ended = next(number for number, said in enumerate(shorter) if "the budget ended the search" in said.line)
    assert [said.line for said in shorter[:ended]] == [said.line for said in story[:end]]
    assert found.notes == tuple(said.line for said in shorter[ended:])
    assert found.finalist
    judged_on = max(tried.judged_on for tried in found.tried)
    best = max((tried for tried in found.tried if tried.judged_on == judged_on), key=lambda tried: tried.dev_score)
    assert found.finalist.optimizer == best.optimizer


@pytest.mark.parametrize("calls", [61, 95, 200, 330, 480])
def test_the_comparison_on_the_holdout_is_always_left_over(split: Split, calls: int) -> None:
    held = comparison_calls(split, ROUTING.build_program(LABELS))
    lm = stand_in(max_calls=held + calls)
    found = searched(split, lm)
    assert lm.meter.calls <= calls
    assert lm.meter.calls_left == held + calls - lm.meter.calls
    for program in (ROUTING.build_program(LABELS), found.finalist.program if found.finalist else None):
        if program:
            answer_all(ROUTING, program, [judged.example for judged in split.holdout], lm)


def test_a_budget_that_cannot_judge_the_incumbent_is_an_error(split: Split) -> None:
    with pytest.raises(InvalidConfig, match=r"raise budget\.max_lm_calls"):
        searched(split, stand_in(max_calls=comparison_calls(split, ROUTING.build_program(LABELS)) + 30))


# --- over HTTP ---


@pytest.fixture
def teaching_server() -> Iterator[LLMServer]:
    with llm_server() as running:
        yield running


def over_http(server: LLMServer, meter: Meter, *, threads: int = 4, role: Role = Role.ANSWERS) -> MeteredLM:
    settings = LMSettings(model=f"openai/{role}", api_base=server.url, concurrency=threads)
    return metered_lm(settings, meter, role)


def test_how_many_calls_are_under_way_does_not_change_the_outcome(server: LLMServer) -> None:
    split = split_of(ROUTING, train=100, dev=40)

    def outcome(threads: int) -> tuple[str, Search]:
        meter = Meter(2000, 10**9)
        lm = over_http(server, meter, threads=threads)
        found = searched(split, lm, over_http(server, meter, threads=threads, role=Role.TEACHER))
        assert found.finalist
        # How long a call takes is no part of the outcome.
        tried = tuple(replace(each, cost=None) for each in found.tried)
        return found.finalist.stored.digest, replace(found, finalist=None, tried=tried, incumbent_cost=None)

    first = outcome(4)
    assert outcome(4) == first
    assert outcome(1) == first
    names = " ".join(tried.optimizer for tried in first[1].tried) + " ".join(first[1].notes)
    assert "gepa" in names
    assert "miprov2" in names


def test_a_teacher_gets_only_what_a_teacher_is_for(server: LLMServer, teaching_server: LLMServer) -> None:
    meter = Meter(3000, 10**9)
    lm, teacher = over_http(server, meter), over_http(teaching_server, meter, role=Role.TEACHER)
    found = searched(split_of(ROUTING, train=60, dev=30), lm, teacher)
    assert meter.calls_by_role == {Role.ANSWERS: server.calls, Role.TEACHER: teaching_server.calls}
    assert meter.tokens == 15 * (server.calls + teaching_server.calls)
    bootstrapping = sum(t.making_calls for t in found.tried if t.optimizer.startswith("bootstrap"))
    assert teaching_server.calls > bootstrapping > 0  # GEPA's reflections come on top
    assert server.calls > 30 + sum(tried.judging_calls for tried in found.tried)  # and so do GEPA's own trials

    before = teaching_server.calls
    config = with_field(CONFIG, "dspy_max_bootstrapped_demos", "0")
    searched(split_of(ROUTING, train=40, dev=30), lm, teacher, config=config)
    assert teaching_server.calls == before


@pytest.mark.parametrize("after", ["bootstrap-few-shot-5: made", "+ gepa: made"])
def test_a_teacher_that_fails_in_a_search_for_instructions_is_an_error_and_not_a_bad_candidate(
    server: LLMServer, teaching_server: LLMServer, after: str
) -> None:
    meter = Meter(3000, 10**9)
    lm, teacher = over_http(server, meter), over_http(teaching_server, meter, role=Role.TEACHER)
    split = split_of(ROUTING, train=100, dev=30)
    failed_at: list[int] = []

    def say(line: str) -> None:
        if after in line:
            teaching_server.always = 401
            failed_at.append(teaching_server.calls)

    with pytest.raises(LMNotConfigured, match="openai/teacher"):
        searched(split, lm, teacher, say=say)
    assert teaching_server.calls == failed_at[0] + 1


def test_an_optimizer_that_breaks_does_not_cost_the_others_their_work(
    server: LLMServer, teaching_server: LLMServer
) -> None:
    meter = Meter(3000, 10**9)
    lm, teacher = over_http(server, meter), over_http(teaching_server, meter, role=Role.TEACHER)

    def say(line: str) -> None:
        if "+ gepa: made" in line:
            teaching_server.trouble = ["no fields at all"] * 1000

    config = with_field(CONFIG, "dspy_max_bootstrapped_demos", "0")
    found = searched(split_of(ROUTING, train=100, dev=30), lm, teacher, config=config, say=say)
    assert found.finalist
    assert any("+ miprov2 failed and was left out: AdapterParseError" in note for note in found.notes)


def test_after_an_outage_nothing_more_is_asked(server: LLMServer) -> None:
    lm = over_http(server, Meter(1000, 10**9))
    asked = examples(ROUTING, 80)
    server.always = 401
    with pytest.raises(LMNotConfigured):
        answer_all(ROUTING, ROUTING.build_program(LABELS), asked, lm)
    assert server.calls <= lm.threads


def test_the_same_request_is_asked_once_unless_another_answer_is_wanted(server: LLMServer) -> None:
    lm = over_http(server, Meter(1000, 10**9))
    asked, program = examples(ROUTING, 10), ROUTING.build_program(LABELS)
    first = answer_all(ROUTING, program, asked, lm)
    assert answer_all(ROUTING, program.deepcopy(), asked, lm) == first
    assert lm.meter.calls == server.calls == 10
    program.predictors()[0].config["temperature"] = 1.0
    answer_all(ROUTING, program, asked, lm)
    assert server.calls == 20


# --- who teaches ---


def test_the_teacher_is_the_tenants_or_the_deployments_or_the_model_that_answers() -> None:
    answering, own = LMSettings(model="openai/small"), LMSettings(model="openai/own")
    deployed = Settings(teacher_lm="openai/large", teacher_lm_api_base="http://127.0.0.1:9")
    assert resolve_teacher(own, deployed, answering) is own
    assert resolve_teacher(None, deployed, answering).model == "openai/large"
    assert resolve_teacher(None, deployed, answering).api_base == "http://127.0.0.1:9"
    assert resolve_teacher(None, Settings(), answering) is answering
