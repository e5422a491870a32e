"""Looking for a better program: optimizers race within one budget, and the winner is the finalist."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import dspy

from autoopt_pipeline.errors import AutooptError, BudgetTooSmall, InvalidConfig
from autoopt_pipeline.evaluation.runner import answer_all, grade, raising_outages, unread_counts
from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.answer_format import CHAT, JSON_SCHEMA, AnswerFormat, in_format
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec, Provenance
from autoopt_pipeline.optimization.optimizers import (
    Improver,
    Optimizer,
    OptimizerContext,
    bootstrappers,
    demo_pickers,
    improvers,
)
from autoopt_pipeline.optimization.racing import Contestant, Race, RaceEntry, balanced
from autoopt_pipeline.optimization.report import CandidateStats
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.tenants.config import RoutingConfigUnified

INCUMBENT = "incumbent"

# Fewest dev examples that can choose among programs.
MIN_DEV = 10


@dataclass(frozen=True)
class Finalist:
    """The program that goes on to the holdout, as it is and as it is stored."""

    optimizer: str
    program: dspy.Module
    stored: Program


@dataclass(frozen=True)
class Search:
    """What a search came to; no finalist where nothing beat the incumbent on dev. The score is a share of 1."""

    finalist: Finalist | None
    tried: tuple[CandidateStats, ...]
    incumbent_dev_score: float
    incumbent_unread: Mapping[str, int]
    notes: tuple[str, ...]


def search(
    spec: ModuleSpec,
    config: RoutingConfigUnified,
    labels: Sequence[Label],
    split: Split,
    incumbent: dspy.Module,
    start: dspy.Module,
    lm: MeteredLM,
    teacher: MeteredLM,
    say: Callable[[str], None],
    tracker: PhaseTracker,
    only: str | None = None,
    try_schema: bool = False,
) -> Search:
    """Race programs made from `start` against the incumbent; the best on dev is the finalist, if it wins there.

    First come programs that cost nothing to make, then bootstrapped ones, then searches for better instructions
    from the leader, so that a spent budget leaves the work of the cheap ones. Where `try_schema` is true, the incumbent
    asked by a JSON schema races before all others, and unless that is clearly worse, these are asked so too. `lm` and
    `teacher` share a meter. With `only`, one of `OPTIMIZERS`, no others race. Raises `LMUnavailable` when a model
    fails, `BudgetTooSmall` when the budget is too small for the incumbent, and `InvalidConfig` when `only` cannot be
    tried here.
    With a deterministic model the outcome depends on nothing but the arguments; only where tokens run out before
    calls do, it depends on how many calls were under way.
    """
    dev = balanced(choosing_examples(split), lambda e: e.label)
    course = _RaceRunner(spec, config.tenant_id, labels, dev, lm, say, tracker)
    shop = OptimizerContext(
        spec=spec,
        start=start,
        train=split.train,
        dev=dev,
        lm=lm,
        teacher=teacher,
        max_labeled_demos=config.dspy_max_labeled_demos,
        max_bootstrapped_demos=config.dspy_max_bootstrapped_demos,
    )
    if not (_chosen(demo_pickers(shop), only) or _chosen(bootstrappers(shop), only) or _chosen(improvers(shop), only)):
        raise InvalidConfig(
            f"optimizer {only} cannot be tried with {len(split.train)} training examples and {teacher.name}",
            "choose another one, or none to try all",
        )
    race = Race(len(dev), course.score, course.entrant(INCUMBENT, incumbent))
    # What the search must leave over for the comparison on the holdout.
    with lm.meter.holding_back(comparison_calls(split, start)):
        try:
            race.start()
        except BudgetExhausted as e:
            raise budget_too_small(config, str(e)) from None
        try:
            if try_schema and not only:
                shop = replace(shop, start=in_format(start, _faster_format(course, race, incumbent)))
            race.run(course.made(_chosen(demo_pickers(shop), only)))
            race.run(course.made(_chosen(bootstrappers(shop), only)))
            for improver in _chosen(improvers(shop), only):
                leader = race.leader.entrant
                race.run(course.made([improver.applied_to(leader.name, leader.program)]))
        except BudgetExhausted as e:
            course.note(f"the budget ended the search: {e}; the best program so far was kept")
    for repeat in race.repeats:
        if repeat.cost:
            course.note(f"{repeat.name} came to a program that was in the race already, with {repeat.cost} LM calls")
    best = race.leader
    return Search(
        finalist=None if best is race.incumbent else course.finalist(best.entrant),
        tried=tuple(course.tried(standing, won=standing is best) for standing in race.standings),
        incumbent_dev_score=race.incumbent.mean(),
        incumbent_unread=course.unread_of(race.incumbent),
        notes=tuple(course.notes),
    )


def _faster_format(course: "_RaceRunner", race: Race[dspy.Module], incumbent: dspy.Module) -> AnswerFormat:
    """The format for what is made from now on: JSON, whose prompts are short, unless that is clearly worse."""
    race.run([course.entrant("json-schema", in_format(incumbent, JSON_SCHEMA))])
    in_json = race.standings[-1]
    worse = f"{100 * in_json.mean():.1f} against {100 * race.incumbent.mean(len(in_json.scores)):.1f} %"
    if in_json.dropped:
        course.note(f"candidates are asked in DSPy's chat format: by a JSON schema the incumbent is worse ({worse})")
        return CHAT
    course.note(f"candidates are asked by a JSON schema, in which the incumbent is not clearly worse ({worse})")
    return JSON_SCHEMA


_Named = TypeVar("_Named", Optimizer, Improver)


def _chosen(optimizers: Iterable[_Named], only: str | None) -> list[_Named]:
    return [each for each in optimizers if only is None or re.sub(r"-[0-9]+$", "", each.name) == only]


@dataclass
class _RaceRunner:
    """Where the race is run: makes entrants and asks them, and keeps count of what that takes."""

    spec: ModuleSpec
    tenant_id: str
    labels: Sequence[Label]
    dev: Sequence[Example]
    lm: MeteredLM
    say: Callable[[str], None]
    tracker: PhaseTracker
    judging_calls: Counter[str] = field(default_factory=Counter)
    unread: dict[str, Counter[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.say(line)

    def made(self, optimizers: Iterable[Optimizer]) -> Iterator[Contestant[dspy.Module]]:
        """Entrants, each made as it is taken. An optimizer that breaks must not cost the others' work."""
        for optimizer in optimizers:
            before = self.lm.meter.calls
            try:
                with raising_outages(), self.tracker.phase(f"making {optimizer.name}"):
                    program = optimizer.compile()
            except AutooptError:
                raise
            except Exception as e:  # noqa: BLE001 - whatever DSPy and the packages it calls raise
                self.note(f"{optimizer.name} failed and was left out: {type(e).__name__}: {str(e)[:200]}")
                continue
            cost = self.lm.meter.calls - before
            self.say(f"{optimizer.name}: made with {cost} LM calls")
            yield self.entrant(optimizer.name, program, cost)

    def entrant(self, name: str, program: dspy.Module, cost: int = 0) -> Contestant[dspy.Module]:
        return Contestant(name, self._stored(program).digest, program, cost)

    def score(self, entrant: Contestant[dspy.Module], first: int, stop: int) -> list[float]:
        asked, before = self.dev[first:stop], self.lm.meter.calls
        try:
            with self.tracker.phase(f"{entrant.name} on dev", len(asked)) as answered:
                answers = answer_all(
                    self.spec,
                    entrant.program,
                    asked,
                    self.lm,
                    must_be_readable=entrant.name == INCUMBENT,
                    answered=answered,
                )
        finally:
            self.judging_calls[entrant.key] += self.lm.meter.calls - before
        self.unread.setdefault(entrant.key, Counter()).update(unread_counts(answers))
        scores = [graded.score for graded in grade(self.spec, asked, answers)]
        self.say(f"{entrant.name}: {100 * sum(scores) / len(scores):.1f} % on dev examples {first + 1} to {stop}")
        return scores

    def finalist(self, entrant: Contestant[dspy.Module]) -> Finalist:
        return Finalist(entrant.name, entrant.program, self._stored(entrant.program))

    def tried(self, standing: RaceEntry[dspy.Module], *, won: bool) -> CandidateStats:
        return CandidateStats(
            optimizer=standing.entrant.name,
            dev_score=standing.mean(),
            judged_on=len(standing.scores),
            making_calls=standing.entrant.cost,
            judging_calls=self.judging_calls[standing.entrant.key],
            dropped_after=None if won else len(standing.scores),
            unread=self.unread_of(standing),
        )

    def unread_of(self, standing: RaceEntry[dspy.Module]) -> dict[str, int]:
        return dict(sorted(self.unread.get(standing.entrant.key, {}).items()))

    def _stored(self, program: dspy.Module) -> Program:
        return serialize(self.spec, self.tenant_id, self.labels, program)


def choosing_examples(split: Split) -> list[Example]:
    """The dev examples that choose among programs: the reviewed ones, where they are enough.

    The others carry the application's own answers, with which its present program agrees, right or wrong.
    """
    reviewed = [example for example in split.dev if example.provenance is not Provenance.OUTCOME]
    return reviewed if len(reviewed) >= MIN_DEV else list(split.dev)


def comparison_calls(split: Split, program: dspy.Module) -> int:
    """Calls that comparing two programs on the holdout takes, and a few for what DSPy asks again when it is slow."""
    return 2 * (len(split.holdout) + len(split.guard)) * len(program.predictors()) + 10


def check_budget(config: RoutingConfigUnified, split: Split, program: dspy.Module) -> None:
    """A budget that cannot even pay the comparison would end every run the same way, so it is an error.

    Of `program` only the predictors are counted: each takes a call.
    """
    least = comparison_calls(split, program) + len(choosing_examples(split)) * len(program.predictors())
    if config.budget.max_lm_calls < least:
        raise budget_too_small(
            config, f"budget.max_lm_calls is {config.budget.max_lm_calls}, and {least} calls are the least"
        )


def budget_too_small(config: RoutingConfigUnified, what: str) -> BudgetTooSmall:
    """The error for a budget that cannot decide anything."""
    return BudgetTooSmall(
        f"tenant {config.tenant_id}: the budget does not pay for a comparison: {what}",
        "raise budget.max_lm_calls and budget.max_tokens",
    )
