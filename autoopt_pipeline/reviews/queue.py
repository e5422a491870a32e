"""Which drawn traces wait for a review, and the questions about them. Reviewers do not see which program said what.

A module has one queue: first the traces of its candidate under test, then those of its rollout. When the test or the
rollout ends, its traces are gone from the queue.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.evaluation.sequential_test_log import steps_of_open_test
from autoopt_pipeline.hashing import unit_interval
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.labeling import is_of_disagreement
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.modules.spec import Annotation, Label, LoggedDecision, ModuleSpec
from autoopt_pipeline.registry.records import DrawnTrace, Verdict
from autoopt_pipeline.registry.rollout_records import disagreements
from autoopt_pipeline.registry.transitions import active_rollout
from autoopt_pipeline.reviews.order import to_review
from autoopt_pipeline.span_contract import BASELINE, UNDECIDED, project_name
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import read_config
from autoopt_pipeline.traces.client import Project
from autoopt_pipeline.traces.reader import read_decisions

_SECONDS_PER_REVIEW = 10

_ONE_SPAN = timedelta(milliseconds=1)


@dataclass(frozen=True)
class ReviewQueue:
    """The drawn traces of one module that reviewers are asked about, in order, and the reviews that they have.

    `candidate` is under test, None if only a rollout asks. `versions` says by span for which new version a trace was
    drawn. `reviews` holds the annotations of people by span, oldest first. `favoured` is the candidate's gain on all
    disagreements together if a judge is right, 0 without one. `decides_after` more reviews a decision about the
    candidate is possible at the soonest; None where that is not known.
    """

    tenant_id: str
    module: str
    candidate: str | None
    versions: Mapping[str, str]
    since: datetime
    traces: tuple[DrawnTrace, ...]
    reviews: Mapping[str, tuple[Annotation, ...]]
    favoured: float
    project: Project = field(repr=False)
    decides_after: int | None = None

    @property
    def waiting(self) -> list[DrawnTrace]:
        """The traces without a review, in order."""
        return [trace for trace in self.traces if trace.span_id not in self.reviews]

    @property
    def waiting_of_rollout(self) -> int:
        """How many of the traces without a review were drawn for the rollout."""
        return sum(self.versions[trace.span_id] != self.candidate for trace in self.waiting)

    @property
    def version(self) -> str:
        """The new versions that the reviews are about: a candidate, or a rollout's newer version, or both."""
        return ", ".join(sorted(set(self.versions.values()), key=lambda version: version != self.candidate))

    @property
    def reviewed(self) -> int:
        return len(self.traces) - len(self.waiting)

    @property
    def time_left(self) -> timedelta:
        """How long all reviews that are left take a person. A decision often comes sooner."""
        return time_for(len(self.waiting))


def time_for(reviews: int) -> timedelta:
    """About how long a person takes for so many reviews."""
    return timedelta(seconds=_SECONDS_PER_REVIEW * reviews)


@dataclass(frozen=True)
class Question:
    """One trace to review: its inputs without personal data, and the answers to choose from, in a random order."""

    tenant_id: str
    module: str
    version: str
    trace: DrawnTrace
    inputs: Mapping[str, str]
    answers: tuple[str, ...]
    labels: tuple[Label, ...]
    decision: LoggedDecision = field(repr=False)

    @property
    def others(self) -> tuple[Label, ...]:
        """The labels that neither program gave, as far as the module can read them as an answer."""
        return tuple(label for label in self.labels if label.name not in self.answers and self.accepts(label.name))

    def accepts(self, answer: str) -> bool:
        """Whether the module can read this answer, or it says that nobody can tell."""
        if answer.lower() in UNDECIDED:
            return True
        said = Annotation("HUMAN", answer, {}, self.decision.time)
        reviewed = replace(self.decision, annotations=(said,))
        return bool(get_module(self.module).build_examples(self.labels, [reviewed], redact=str).examples)


def open_queue(connections: Connections, tenant_id: str, module: str) -> ReviewQueue | None:
    """Return the queue of a tenant's module, or None if neither a candidate nor a rollout of it asks for reviews."""
    artifacts = connections.artifacts(tenant_id, module)
    steps = [step for step in steps_of_open_test(artifacts)[-1:] if step.verdict == Verdict.AWAITING_REVIEWS]
    rollout = active_rollout(artifacts.last_transition())
    draws = artifacts.rollout_draws(rollout.transition) if rollout else []
    tested = {trace.span_id: trace for step in steps for trace in to_review(step.drawn)}
    of_rollout = {trace.span_id: trace for trace in disagreements(draws)}
    traces = tested | {span: trace for span, trace in of_rollout.items() if span not in tested}
    if not traces:
        return None
    phoenix = connections.phoenix
    project = phoenix.project(project_name(tenant_id))
    if project is None:
        return None
    annotations = phoenix.annotations(project, get_module(module).contract, list(traces))
    reviews = {
        span: tuple(sorted(people, key=lambda annotation: annotation.updated_at))
        for span, given in annotations.items()
        # In a rollout only reviews count that were asked for.
        if (people := list(filter(is_of_disagreement if span in of_rollout else _is_of_person, given)))
    }
    newer = (rollout.version if rollout else None) or BASELINE
    judged = [trace.judged.judged for step in steps for trace in step.drawn if trace.judged and trace.judged.judged]
    return ReviewQueue(
        tenant_id=tenant_id,
        module=module,
        candidate=steps[0].version if steps else None,
        versions={span: steps[0].version if span in tested else newer for span in traces},
        since=min(made.at for made in (*steps, *draws)),
        traces=tuple(traces.values()),
        reviews=reviews,
        favoured=0.0 if of_rollout else sum(word.difference for word in judged),
        project=project,
    )


def _is_of_person(annotation: Annotation) -> bool:
    return annotation.kind == "HUMAN"


def open_queues(connections: Connections, modules: Iterable[tuple[str, str]]) -> list[ReviewQueue]:
    """Return the queues of these (tenant, module) that wait for somebody, in the order of `shortest_first`."""
    queues = [queue for tenant, module in modules if (queue := open_queue(connections, tenant, module))]
    return shortest_first(queue for queue in queues if queue.waiting)


def shortest_first(queues: Iterable[ReviewQueue]) -> list[ReviewQueue]:
    """Sort queues: those that the fewest reviews decide first; all that are left count where that is not known.

    Candidates that would lose if a judge is right come last: reviews of them improve nothing.
    """

    def order(queue: ReviewQueue) -> tuple[bool, int, datetime, str, str]:
        needed = len(queue.waiting) if queue.decides_after is None else queue.decides_after
        return queue.favoured < 0, needed, queue.since, queue.tenant_id, queue.module

    return sorted(queues, key=order)


def questions(connections: Connections, queue: ReviewQueue, traces: Iterable[DrawnTrace]) -> Iterator[Question]:
    """Yield the questions about these traces of the queue. A trace that Phoenix no longer has is passed over."""
    spec = get_module(queue.module)
    config, _ = read_config(connections.configs, queue.tenant_id)
    labels = labels_of(spec, config)
    redact = load_redaction(connections.settings.redaction)
    for trace in traces:
        decisions = read_decisions(
            connections.phoenix, queue.project, spec, start=trace.time, end=trace.time + _ONE_SPAN
        )
        for decision in decisions:
            requests = spec.build_requests(labels, [decision], redact) if decision.span_id == trace.span_id else ()
            for request in requests:
                question = Question(
                    tenant_id=queue.tenant_id,
                    module=queue.module,
                    version=queue.versions[trace.span_id],
                    trace=trace,
                    inputs={name: text for name, text in request.inputs.items() if text},
                    answers=_answers(spec, trace),
                    labels=labels,
                    decision=decision,
                )
                yield replace(question, answers=tuple(filter(question.accepts, question.answers)))


def _answers(spec: ModuleSpec, trace: DrawnTrace) -> tuple[str, ...]:
    texts = {
        spec.answer_text(answer.values) for answer in (trace.incumbent, trace.candidate) if answer.values is not None
    }
    return tuple(sorted(texts, key=lambda text: unit_interval(f"{trace.span_id} {text}")))
