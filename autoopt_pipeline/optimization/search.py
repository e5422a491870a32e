"""Searches for a better program: optimizers race within one budget, and the winner is the finalist."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import dspy

from autoopt_pipeline.errors import AutooptError, BudgetTooSmall, InvalidConfig, LMNotConfigured, LMUnavailable
from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge
from autoopt_pipeline.evaluation.cost import DecisionCost, measured
from autoopt_pipeline.evaluation.gate import MIN_GAIN, MIN_HOLDOUT
from autoopt_pipeline.evaluation.not_worse import MOST_TRACES, traces_for
from autoopt_pipeline.evaluation.runner import answer_all, grade, raising_outages, unread_counts
from autoopt_pipeline.evaluation.sequential_test import MAX_BATCH
from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.probe import enforces_schema
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.answer_format import CHAT, JSON_SCHEMA, AnswerFormat, in_format
from autoopt_pipeline.modules.cascade import Cascade
from autoopt_pipeline.modules.encoder import open_encoder
from autoopt_pipeline.modules.named_model import named_models, naming
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec, Provenance
from autoopt_pipeline.optimization.optimizers import (
    Improver,
    Optimizer,
    OptimizerContext,
    bootstrappers,
    demo_pickers,
    improvers,
    lean_pickers,
    routers,
)
from autoopt_pipeline.optimization.prompt_diet import halved_demos, own_instructions
from autoopt_pipeline.optimization.racing import Contestant, Race, RaceEntry, balanced, clearly_behind
from autoopt_pipeline.optimization.report import CandidateStats
from autoopt_pipeline.optimization.router_training import can_be_routed
from autoopt_pipeline.registry.program_cost import INCUMBENT, ProgramCost, cost_ratio, dollar_ratio, saving
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.tenants.config import Objective, RoutingConfigUnified

# Fewest dev examples for choosing among programs.
MIN_DEV = 10

# Mean scores are compared with this tolerance.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Finalist:
    """The program that goes on to the holdout test, with its stored form."""

    optimizer: str
    program: dspy.Module
    stored: Program


@dataclass(frozen=True)
class Search:
    """The result of a search. `finalist` is None if no program beat the incumbent on dev. The score is 0 to 1."""

    finalist: Finalist | None
    tried: tuple[CandidateStats, ...]
    incumbent_dev_score: float
    incumbent_unread: Mapping[str, int]
    incumbent_cost: ProgramCost | None
    notes: tuple[str, ...]


def search(  # noqa: PLR0913 - the parts of one run, each of a type of its own
    spec: ModuleSpec,
    config: RoutingConfigUnified,
    labels: Sequence[Label],
    split: Split,
    incumbent: dspy.Module,
    start: dspy.Module,
    lm: MeteredLM,
    teacher: MeteredLM,
    log: Callable[[str], None],
    tracker: PhaseTracker,
    others: Sequence[MeteredLM] = (),
    only: str | None = None,
    try_schema: bool = False,
    retired: dspy.Module | None = None,
    encoder: Path | None = None,
) -> Search:
    """Race programs made from `start` against the incumbent. The best one on dev is the finalist if it wins.

    Programs that cost nothing to make come first, then bootstrapped ones, then those of candidate models (`others`),
    then searches for better instructions from the leader, so that the cheap results remain if the budget runs out. A
    candidate model gets the leader's prompts and labelled demos of its own. The leader's prompts are then made shorter.
    Local routers come last, because some of them ask a model what they are not sure about. A cheaper program may win
    that is about as good (see `_choice`). With `try_schema`, the incumbent with a JSON schema races first, and the
    others use a JSON schema too unless that is clearly worse. `lm` and `teacher` share a meter. With `only`, one of
    `OPTIMIZERS`, no other optimizer races. `retired` is a program that served until its model was retired. Local
    routers use the sentence encoder in the folder `encoder`.

    A candidate model that fails is left out. Raises `LMUnavailable` if another one fails, `BudgetTooSmall` if the
    budget is too small for the incumbent, `InvalidConfig` if `only` cannot be used here, and `InvalidSettings` if
    `encoder` cannot be loaded. With a deterministic model the result depends only on the arguments, except that if
    tokens run out before calls do, it also depends on the number of concurrent calls.
    """
    dev = balanced(choosing_examples(split), lambda e: e.label)
    runner = _RaceRunner(spec, config.tenant_id, labels, dev, lm, log, tracker)
    routed = only in {None, "local-router"} and config.local_router and can_be_routed(spec, labels, split.train)
    context = OptimizerContext(
        spec=spec,
        labels=labels,
        start=start,
        train=split.train,
        dev=dev,
        lm=lm,
        teacher=teacher,
        max_labeled_demos=config.dspy_max_labeled_demos,
        max_bootstrapped_demos=config.dspy_max_bootstrapped_demos,
        encoder=open_encoder(encoder) if routed and encoder else None,
    )
    dieting = only is None or (only == "prompt-diet" and bool(_leaner(INCUMBENT, incumbent, start)))
    if not (
        _chosen(demo_pickers(context), only)
        or _chosen(bootstrappers(context), only)
        or _chosen(improvers(context), only)
        or dieting
        or routed
    ):
        raise InvalidConfig(
            f"optimizer {only} cannot be tried with {len(split.train)} training examples and {teacher.name}",
            "choose another optimizer, or none to try all",
        )
    race = Race(len(dev), runner.score, runner.entrant(INCUMBENT, incumbent))
    # The search must leave enough of the budget for the comparison on the holdout.
    with lm.meter.holding_back(comparison_calls(split, start)):
        try:
            race.start()
        except BudgetExhausted as e:
            raise budget_too_small(config, str(e)) from None
        try:
            if try_schema and not only:
                context = replace(context, start=in_format(start, _faster_format(runner, race, incumbent)))
            if isinstance(incumbent, Cascade):
                race.run([runner.entrant("incumbent's model", incumbent.model)])
            if retired and not only:
                race.run([runner.entrant("retired program", retired)])
            if only or race.incumbent.mean() <= 1 - MIN_GAIN:
                _look_for_better(runner, race, context, only, others)
            else:
                runner.note(
                    f"the incumbent is right on {100 * race.incumbent.mean():.1f} % of dev, which leaves too little to "
                    "gain, so only cheaper programs race"
                )
                _let_models_race(runner, race, context, others)
            if dieting:
                _put_on_diet(runner, race, _best_prompts(race, runner.left_out), start, config.objective)
        except BudgetExhausted as e:
            runner.note(f"the budget ended the search: {e}; the best program so far was kept")
        if routed:
            # A router alone asks no model, so it races after a spent budget, too.
            with suppress(BudgetExhausted):
                _let_routers_race(runner, race, context, config.objective)
    for repeat in race.repeats:
        if repeat.cost:
            runner.note(f"{repeat.name} made a program that was already in the race, with {repeat.cost} LM calls")
    best = _choice(runner, race, config.objective)
    return Search(
        finalist=None if best is race.incumbent else runner.finalist(best.entrant),
        tried=tuple(runner.tried(entry, won=entry is best) for entry in race.entries),
        incumbent_dev_score=race.incumbent.mean(),
        incumbent_unread=runner.unread_of(race.incumbent),
        incumbent_cost=runner.cost_of(race.incumbent),
        notes=tuple(runner.notes),
    )


def _look_for_better(
    runner: "_RaceRunner",
    race: Race[dspy.Module],
    context: OptimizerContext,
    only: str | None,
    others: Sequence[MeteredLM],
) -> None:
    race.run(runner.made(_chosen(demo_pickers(context), only)))
    race.run(runner.made(_chosen(lean_pickers(context), only)), apart=True)
    race.run(runner.made(_chosen(bootstrappers(context), only)))
    if only is None:
        _let_models_race(runner, race, context, others)
    for improver in _chosen(improvers(context), only):
        leader = _best_prompts(race, runner.left_out).entrant
        improved = runner.made([improver.applied_to(leader.name, leader.program)])
        runner.run(race, improved, named_models(leader.program))


def _let_models_race(
    runner: "_RaceRunner", race: Race[dspy.Module], context: OptimizerContext, others: Sequence[MeteredLM]
) -> None:
    """Let candidate models race, each in a heat of its own, so that a cheap one has to beat no dear one."""
    prompts = _best_prompts(race, runner.left_out).entrant
    for model in others:
        runner.run(race, _of_model(runner, prompts, context, model), {model.name}, apart=True)


def _let_routers_race(
    runner: "_RaceRunner", race: Race[dspy.Module], context: OptimizerContext, objective: Objective
) -> None:
    asked = _choice(runner, race, objective, without_routers=True)
    program = asked.entrant.program
    for optimizer in routers(context, program, asked.scores):
        runner.run(race, runner.made([optimizer]), named_models(program))


def _choice(
    runner: "_RaceRunner", race: Race[dspy.Module], objective: Objective, *, without_routers: bool = False
) -> RaceEntry[dspy.Module]:
    """Return the program to go on with: the best one, or a cheaper one that is about as good; else the incumbent.

    A program has to score more than the incumbent, or save enough and lose at most `max_loss`, with so few differences
    that not being worse can be proven. Those that are clearly better than the incumbent, and cost at most
    `max_cost_increase` times as many dollars, come before the others, because they need no approval. Within `max_loss`
    of the best one, the cheapest that saves enough wins.
    """
    running = [
        entry
        for entry in race.entries
        if not entry.dropped and not (without_routers and isinstance(entry.entrant.program, Cascade))
    ]
    size = max((len(entry.scores) for entry in running), default=0)
    incumbent, score = race.incumbent.scores[:size], race.incumbent.mean(size)

    def saves(entry: RaceEntry[dspy.Module], other: RaceEntry[dspy.Module]) -> bool:
        if not objective.max_loss or entry.mean() < other.mean(size) - objective.max_loss - _ROUNDING:
            return False
        same_lms = named_models(entry.entrant.program) == named_models(other.entrant.program)
        costs = runner.cost_of(entry), runner.cost_of(other)
        return saving(*costs, objective.min_saving, same_lms=same_lms) is not None

    def is_worthy(entry: RaceEntry[dspy.Module]) -> bool:
        cheaper = saves(entry, race.incumbent) and _can_be_proven(entry.scores, incumbent, objective.max_loss)
        return entry.mean() > score or cheaper

    def needs_no_approval(entry: RaceEntry[dspy.Module]) -> bool:
        ratio = dollar_ratio(runner.cost_of(entry), runner.cost_of(race.incumbent))
        return clearly_behind(incumbent, entry.scores) and (ratio is None or ratio <= objective.max_cost_increase)

    worthy = [entry for entry in running if len(entry.scores) == size and is_worthy(entry)]
    chosen_from = list(filter(needs_no_approval, worthy)) or worthy
    if not chosen_from:
        return race.incumbent
    best = max(chosen_from, key=RaceEntry.mean)
    cost = runner.cost_of(best)
    cheaper = [entry for entry in chosen_from if saves(entry, best)]
    return min(cheaper, key=lambda entry: (cost_ratio(runner.cost_of(entry), cost) or 0.0, -entry.mean()), default=best)


def _can_be_proven(scores: Sequence[float], incumbent: Sequence[float], max_loss: float) -> bool:
    """Check by the dev examples whether few enough traces could prove that a program is not worse."""
    differences = [new - old for new, old in zip(scores, incumbent, strict=True)]
    disagreements = sum(difference != 0 for difference in differences) / len(differences)
    gain = max(max_loss, sum(differences) / len(differences))
    return traces_for(disagreements, gain, max_loss, alpha_of_charge(1)) <= MOST_TRACES


def _leaner(name: str, program: dspy.Module, start: dspy.Module) -> list[Optimizer]:
    return [*own_instructions(name, program, start), *halved_demos(name, program)]


def _put_on_diet(
    runner: "_RaceRunner",
    race: Race[dspy.Module],
    leader: RaceEntry[dspy.Module],
    start: dspy.Module,
    objective: Objective,
) -> None:
    """Let shorter prompts race, and shorten them again as long as they are about as good as the leader's."""
    made = own_instructions(leader.entrant.name, leader.entrant.program, start)
    models = named_models(leader.entrant.program)
    runner.run(race, runner.made(made), models)
    lean = leader.entrant
    while halves := halved_demos(lean.name, lean.program):
        known = len(race.entries)
        runner.run(race, runner.made(halves), models)
        good = [
            entry
            for entry in race.entries[known:]
            if not entry.dropped and entry.mean() >= leader.mean() - objective.max_loss - _ROUNDING
        ]
        if not good:
            return
        lean = good[0].entrant


def _best_prompts(race: Race[dspy.Module], left_out: set[str]) -> RaceEntry[dspy.Module]:
    """Return the best program that asks a model every time, but none of the models `left_out`.

    The incumbent comes first of equals, then the cheaper.
    """
    able = [entry for entry in race.entries if not named_models(entry.entrant.program) & left_out]
    asking = [entry for entry in (race.incumbent, *able) if not isinstance(entry.entrant.program, Cascade)]
    return max(asking, key=lambda entry: (len(entry.scores), entry.mean()))


def _faster_format(runner: "_RaceRunner", race: Race[dspy.Module], incumbent: dspy.Module) -> AnswerFormat:
    """Return the format for further programs: a JSON schema, whose prompts are short, unless it is worse."""
    race.run([runner.entrant("json-schema", in_format(incumbent, JSON_SCHEMA))])
    in_json = race.entries[-1]
    scores = f"{100 * in_json.mean():.1f} against {100 * race.incumbent.mean(len(in_json.scores)):.1f} %"
    if in_json.dropped:
        runner.note(f"candidates use DSPy's chat format, because the incumbent is worse with a JSON schema ({scores})")
        return CHAT
    runner.note(f"candidates use a JSON schema, with which the incumbent is not clearly worse ({scores})")
    return JSON_SCHEMA


def _of_model(
    runner: "_RaceRunner", leader: Contestant[dspy.Module], context: OptimizerContext, model: MeteredLM
) -> Iterator[Contestant[dspy.Module]]:
    """Yield programs that name a candidate model: the leader's prompts, and those with labelled demos."""

    def of_model(optimizer: Optimizer) -> Optimizer:
        return Optimizer(f"{optimizer.name} ({model.name})", lambda: naming(optimizer.compile(), model.name))

    asked_in = model.answer_format
    if asked_in == "auto":
        with raising_outages():
            asked_in = JSON_SCHEMA if enforces_schema(model.lm) else CHAT
    prompts = Optimizer(leader.name, lambda: in_format(leader.program, asked_in))
    pickers = demo_pickers(replace(context, start=in_format(context.start, asked_in)))
    yield from runner.made(map(of_model, (prompts, *pickers)))


_Named = TypeVar("_Named", Optimizer, Improver)


def _chosen(optimizers: Iterable[_Named], only: str | None) -> list[_Named]:
    return [optimizer for optimizer in optimizers if only is None or re.sub(r"-[0-9]+$", "", optimizer.name) == only]


@dataclass
class _RaceRunner:
    """Makes the entrants of a race, scores them, and counts the LM calls."""

    spec: ModuleSpec
    tenant_id: str
    labels: Sequence[Label]
    dev: Sequence[Example]
    lm: MeteredLM
    log: Callable[[str], None]
    tracker: PhaseTracker
    judging_calls: Counter[str] = field(default_factory=Counter)
    unread: dict[str, Counter[str]] = field(default_factory=dict)
    costs: defaultdict[str, list[DecisionCost | None]] = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.log(line)

    def run(
        self,
        race: Race[dspy.Module],
        entrants: Iterable[Contestant[dspy.Module]],
        models: set[str],
        *,
        apart: bool = False,
    ) -> None:
        """Run a heat whose entrants ask these candidate models. If one of them fails, all its programs are left out."""
        try:
            race.run(entrants, apart=apart)
        except (LMUnavailable, LMNotConfigured) as e:
            own_failed = self.lm.meter.outages.keys() - self.lm.others.keys()
            if not models or own_failed or models & named_models(race.incumbent.entrant.program):
                raise
            self.note(f"the programs that ask {', '.join(sorted(models))} were left out: {e}")
            self.left_out |= models
            for entry in race.entries:
                entry.dropped = entry.dropped or bool(named_models(entry.entrant.program) & models)

    def made(self, optimizers: Iterable[Optimizer]) -> Iterator[Contestant[dspy.Module]]:
        """Yield entrants, each made when it is taken. An optimizer that fails is left out, and the others go on."""
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
            self.log(f"{optimizer.name}: made with {cost} LM calls")
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
        self.costs[entrant.key] += [answer.cost for answer in answers]
        scores = [answer.score for answer in grade(self.spec, asked, answers)]
        self.log(f"{entrant.name}: {100 * sum(scores) / len(scores):.1f} % on dev examples {first + 1} to {stop}")
        return scores

    def finalist(self, entrant: Contestant[dspy.Module]) -> Finalist:
        return Finalist(entrant.name, entrant.program, self._stored(entrant.program))

    def tried(self, entry: RaceEntry[dspy.Module], *, won: bool) -> CandidateStats:
        return CandidateStats(
            optimizer=entry.entrant.name,
            dev_score=entry.mean(),
            judged_on=len(entry.scores),
            making_calls=entry.entrant.cost,
            judging_calls=self.judging_calls[entry.entrant.key],
            dropped_after=None if won else len(entry.scores),
            unread=self.unread_of(entry),
            cost=self.cost_of(entry),
        )

    def cost_of(self, entry: RaceEntry[dspy.Module]) -> ProgramCost | None:
        return measured(self.costs[entry.entrant.key])

    def unread_of(self, entry: RaceEntry[dspy.Module]) -> dict[str, int]:
        return dict(sorted(self.unread.get(entry.entrant.key, {}).items()))

    def _stored(self, program: dspy.Module) -> Program:
        return serialize(self.spec, self.tenant_id, self.labels, program)


def reviewed_dev(split: Split) -> list[Example]:
    """Return the dev examples whose label is not the application's own answer."""
    return [example for example in split.dev if example.provenance is not Provenance.OUTCOME]


def choosing_examples(split: Split) -> list[Example]:
    """Return the dev examples that choose among programs: the reviewed ones if they are enough, else all.

    The labels of the others are the application's own answers, so its present program agrees with them, right or wrong.
    """
    reviewed = reviewed_dev(split)
    return reviewed if len(reviewed) >= MIN_DEV else list(split.dev)


def comparison_calls(split: Split, program: dspy.Module) -> int:
    """Return the calls for comparing two programs on the holdout, with a few extra for requests that DSPy repeats."""
    return 2 * compared_traces(split) * len(program.predictors()) + 10


def compared_traces(split: Split) -> int:
    """Return the number of traces on which two programs are compared."""
    drawn = min(len(split.drawable), MAX_BATCH)
    return drawn if drawn and len(split.holdout) < MIN_HOLDOUT else len(split.holdout) + len(split.guard)


def least_calls(split: Split, program: dspy.Module) -> int:
    """Return the calls without which no verdict is possible. Each predictor of `program` takes one per example."""
    return comparison_calls(split, program) + len(choosing_examples(split)) * len(program.predictors())


def check_budget(config: RoutingConfigUnified, split: Split, program: dspy.Module) -> None:
    """Raise `BudgetTooSmall` if the budget cannot pay for the comparison, because every run would end the same way."""
    least = least_calls(split, program)
    if config.budget.max_lm_calls < least:
        raise budget_too_small(
            config, f"budget.max_lm_calls is {config.budget.max_lm_calls}, and at least {least} calls are needed"
        )


def budget_too_small(config: RoutingConfigUnified, cause: str) -> BudgetTooSmall:
    """Return the error for a budget that does not allow any verdict."""
    return BudgetTooSmall(
        f"tenant {config.tenant_id}: the budget does not pay for a comparison: {cause}",
        "raise budget.max_lm_calls and budget.max_tokens"
        + (" and budget.max_dollars" if config.budget.max_dollars else ""),
    )
