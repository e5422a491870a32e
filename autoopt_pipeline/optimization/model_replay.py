"""Asks the program that serves again what it was asked before, so that a changed language model can be told.

A version is first asked before its promotion, on held-out traces, and the baseline or another version when a run finds
that it never was. Each run then asks the same requests again, if the tenant allows the calls, and leaves the result for
the monitor of live quality. Answers are asked anew, never taken from a cache.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import dspy

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.model_change import has_changed, p_value
from autoopt_pipeline.evaluation.runner import Answer, answer_all
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.lm.metering import BudgetExhausted
from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.spec import Example, Provenance
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.registry.records import StoredAnswer
from autoopt_pipeline.registry.replays import ModelReplay, ReplayExample, ReplaySet
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of

# Most requests that are kept for a version, and the most characters of one.
MOST_KEPT, MOST_CHARS = 48, 4000

# Part of the calls for asking everything once. The rest is for changed answers, which are asked once more.
ASKED_ONCE = 0.8

# Fewer requests prove nothing.
LEAST_ASKED = 10

Answered = Sequence[tuple[Example, Answer]]
"""What a program was asked, with its answers."""


def replay_set(
    version: str | None,
    answered: Answered,
    lm: str,
    *,
    program: str | None = None,
) -> ReplaySet:
    """Choose requests that a version was just asked, at random. `lm` names the model that answered."""
    answers = {example.span_id: (example, answer) for example, answer in answered}
    chosen = _at_random(example for example, _ in answers.values() if _is_short(example))
    now = datetime.now(UTC)
    return ReplaySet(
        version=version,
        program=program,
        lm=lm,
        answered_at=now,
        same_at=now,
        examples=tuple(
            ReplayExample(
                span_id=example.span_id,
                trace_id=example.trace_id,
                inputs=example.inputs,
                answer=_stored(answers[example.span_id][1]),
            )
            for example in chosen
        ),
    )


def most_replayed(config: RoutingConfigUnified, program: dspy.Module) -> int:
    """Return how many requests a run asks again: one call of each predictor for each, and a rest for doubts."""
    calls = len(program.predictors())
    if not (config.quality.monitor and calls):
        return 0
    return min(int(config.quality.replay_calls // calls * ASKED_ONCE), MOST_KEPT)


@dataclass(frozen=True)
class Replayer:
    """Asks a program that serves, of a version or the baseline (None), what it was asked before.

    `ask_anew` makes the tenant's models without cached answers, with the meter of the run.
    """

    job: OptimizationJob
    version: str | None
    program: dspy.Module
    ask_anew: Callable[[], MeteredLM]
    artifacts: VersionStore
    tracker: PhaseTracker

    def replay(self, held_out: Sequence[Example]) -> list[str]:
        """Ask again, and report the result; ask `held_out` requests if the program never was asked before.

        Returns notes for the report. Raises as `answer_all` does.
        """
        policy = self.job.config.quality
        if not (policy.monitor and policy.replay_calls and self.program.predictors()):
            return []
        lm = self.ask_anew()
        answers = min(policy.replay_calls, lm.meter.calls_left) // len(self.program.predictors())
        if int(answers * ASKED_ONCE) < LEAST_ASKED:
            return [
                f"the model was not asked again what it was asked before, because {LEAST_ASKED} requests take more "
                f"than quality.replay_calls={policy.replay_calls} or the {lm.meter.calls_left} calls of the budget"
            ]
        try:
            before, notes = self.artifacts.replay_set(self.version), list[str]()
        except InvalidArtifact as e:
            before, notes = None, [f"what the model was asked before is replaced, because it cannot be read: {e}"]
        try:
            # Another baseline has other answers, and erasure may leave too few.
            if before and before.program == self._digest and len(before.examples) >= LEAST_ASKED:
                return [*notes, *self._ask_again(lm, before, answers)]
            return [*notes, *self._ask_first(lm, held_out, int(answers * ASKED_ONCE))]
        except BudgetExhausted as e:
            return [*notes, f"the model was not asked again what it was asked before, because of the budget: {e}"]

    @cached_property
    def _digest(self) -> str | None:
        """The digest of the baseline; None of a version, which never changes."""
        if self.version:
            return None
        spec, config = self.job.spec, self.job.config
        return serialize(spec, config.tenant_id, labels_of(spec, config), self.program).digest

    def _ask_first(self, lm: MeteredLM, held_out: Sequence[Example], most: int) -> list[str]:
        """Ask the program for the first time, for later runs to ask again."""
        new = _at_random(example for example in held_out if _is_short(example))[:most]
        if len(new) < LEAST_ASKED:
            return []
        with self.tracker.phase("model replay", len(new)) as answered:
            answers = answer_all(self.job.spec, self.program, new, lm, answered=answered)
        name = lm.names_asked_by(self.program)
        asked = replay_set(self.version, list(zip(new, answers, strict=True)), name, program=self._digest)
        self.artifacts.keep_replay_set(asked)
        return [f"{name} was asked {len(new)} held-out requests, which later runs ask again"]

    def _ask_again(self, lm: MeteredLM, before: ReplaySet, answers: int) -> list[str]:
        """Ask again what is in the set, with at most so many answers, and report the result."""
        excluded = set(self.job.config.excluded_traces)
        kept = [example for example in before.examples if example.trace_id not in excluded]
        kept = kept[: int(answers * ASKED_ONCE)]
        with self.tracker.phase("model replay", len(kept)) as answered:
            now = self._answers(kept, lm, answered)
            changed = [place for place, example in enumerate(kept) if now[place].values != example.answer.values]
            doubted = changed[: answers - len(kept)]
            third = self._answers([kept[place] for place in doubted], self.ask_anew())
        repeated = sum(again.values == now[place].values for place, again in zip(doubted, third, strict=True))
        returned = sum(again.values == kept[place].answer.values for place, again in zip(doubted, third, strict=True))
        result = ModelReplay(
            tenant_id=self.job.config.tenant_id,
            module=self.job.spec.name,
            version=self.version,
            at=datetime.now(UTC),
            answered_at=before.answered_at,
            same_at=before.same_at,
            lm=lm.names_asked_by(self.program),
            lm_before=before.lm,
            asked=len(kept),
            changed=len(changed),
            repeated=repeated,
            returned=returned,
            p=p_value(len(kept), repeated, returned),
        )
        self.artifacts.report_replay(result)
        if has_changed(result):
            # What is found from now on is another change.
            answered_now = tuple(
                example.model_copy(update={"answer": answer}) for example, answer in zip(kept, now, strict=True)
            )
            update = {"lm": result.lm, "answered_at": result.at, "same_at": result.at, "examples": answered_now}
            self.artifacts.keep_replay_set(before.model_copy(update=update))
        elif not result.differing:
            self.artifacts.keep_replay_set(before.model_copy(update={"same_at": result.at}))
        return [f"{result} (p = {result.p:.2g})"]

    def _answers(
        self, asked: Sequence[ReplayExample], lm: MeteredLM, answered: Callable[[], None] = lambda: None
    ) -> list[StoredAnswer]:
        requests = [_request(example) for example in asked]
        return [_stored(answer) for answer in answer_all(self.job.spec, self.program, requests, lm, answered=answered)]


def _is_short(example: Example) -> bool:
    return sum(map(len, example.inputs.values())) <= MOST_CHARS


def _at_random(examples: Iterable[Example]) -> list[Example]:
    """At most `MOST_KEPT` examples, always the same ones."""
    return sorted(examples, key=lambda example: unit_interval(f"replay {example.span_id}"))[:MOST_KEPT]


def _stored(answer: Answer) -> StoredAnswer:
    """The answer as it is read again from a file."""
    stored = StoredAnswer(values=answer.values, confidence=answer.confidence)
    return StoredAnswer.model_validate_json(stored.model_dump_json())


def _request(example: ReplayExample) -> Example:
    return Example(
        inputs=example.inputs,
        right={},
        label="",
        provenance=Provenance.OUTCOME,
        independent=False,
        time=datetime.now(UTC),
        span_id=example.span_id,
        trace_id=example.trace_id,
    )
