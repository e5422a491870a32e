"""Prepares drawn traces for review, and reads their reviews."""

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile

from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.runner import Answer, grade
from autoopt_pipeline.evaluation.sequential_test import Batch
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.optimization.report import ComparedExample
from autoopt_pipeline.registry.records import DrawnTrace, StoredAnswer
from autoopt_pipeline.reviews.order import in_order

_UNDECIDED = "undecided"


def order_for_review(rows: Sequence[ComparedExample], *, seed: str) -> tuple[list[DrawnTrace], int]:
    """Return the traces in the order of review, and how many of the first disagreements have a person's label."""
    traces = in_order([_drawn(row) for row in rows], seed=seed)
    labelled = {row.example.span_id for row in rows if row.example.provenance is Provenance.HUMAN}
    different = [trace for trace in traces if not trace.alike]
    return traces, sum(1 for _ in takewhile(lambda trace: trace.span_id in labelled, different))


def resolve(
    spec: ModuleSpec,
    traces: Sequence[DrawnTrace],
    reviewed: Mapping[str, Example],
    ties: Collection[str],
    *,
    known: int,
) -> tuple[Batch, list[ComparedExample]]:
    """Return the batch as far as its reviews go, and its traces with a right answer.

    `reviewed` holds examples with a person's label by span, and `ties` the spans whose reviewer named no right answer,
    or that are gone. Of the disagreements only those before the first one without a review count: another order could
    depend on the answers.
    """
    rows = {trace.span_id: _row(spec, trace, reviewed[trace.span_id]) for trace in traces if trace.span_id in reviewed}
    decided: list[PairedCase] = []
    different = [trace for trace in traces if not trace.alike]
    for trace in different:
        if trace.span_id in rows:
            decided.append(rows[trace.span_id].case)
        elif trace.span_id in ties:
            decided.append(_tie(spec, trace))
        else:
            break
    alike = [trace for trace in traces if trace.alike]
    batch = Batch(
        reviewed=tuple(decided),
        disagreements=len(different),
        known=known,
        agreed=tuple(rows[trace.span_id].case for trace in alike if trace.span_id in rows),
        presumed=tuple(_presumed(spec, trace) for trace in alike if trace.span_id not in rows),
    )
    return batch, list(rows.values())


def _drawn(row: ComparedExample) -> DrawnTrace:
    return DrawnTrace(
        span_id=row.example.span_id,
        trace_id=row.example.trace_id,
        time=row.example.time,
        alike=row.incumbent.values == row.candidate.values,
        incumbent=StoredAnswer(values=row.incumbent.values, confidence=row.incumbent.confidence),
        candidate=StoredAnswer(values=row.candidate.values, confidence=row.candidate.confidence),
    )


def _row(spec: ModuleSpec, trace: DrawnTrace, example: Example) -> ComparedExample:
    old, new = (Answer(answer.values, answer.confidence) for answer in (trace.incumbent, trace.candidate))
    case = PairedCase(example.label, *(grade(spec, [example], [answer])[0] for answer in (old, new)))
    return ComparedExample(example, old, new, case)


def _tie(spec: ModuleSpec, trace: DrawnTrace) -> PairedCase:
    return PairedCase(_UNDECIDED, _scored(spec, trace.incumbent, 0.0), _scored(spec, trace.candidate, 0.0))


def _presumed(spec: ModuleSpec, trace: DrawnTrace) -> PairedCase:
    """Return the case as if the like answers were right; they are wrong if they were invalid."""
    score = 0.0 if trace.incumbent.values is None else 1.0
    old, new = _scored(spec, trace.incumbent, score), _scored(spec, trace.candidate, score)
    return PairedCase(old.label or _UNDECIDED, old, new)


def _scored(spec: ModuleSpec, answer: StoredAnswer, score: float) -> ScoredAnswer:
    label = None if answer.values is None else spec.label(answer.values)
    return ScoredAnswer(score, label, answer.confidence)
