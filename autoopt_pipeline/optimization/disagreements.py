"""Prepares drawn traces for review, and reads their reviews."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from autoopt_pipeline.evaluation.cases import UNDECIDED_CLASS, UNJUDGED, PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.runner import Answer, grade_both
from autoopt_pipeline.evaluation.sequential_test import Batch
from autoopt_pipeline.evaluation.sequential_test_log import case_of
from autoopt_pipeline.modules.spec import Example, ModuleSpec, Provenance
from autoopt_pipeline.optimization.report import ComparedExample
from autoopt_pipeline.registry.records import DrawnTrace, StoredAnswer
from autoopt_pipeline.reviews.order import in_order


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
        judged = case_of(trace.judged) if trace.judged else None
        if judged and not trace.is_asked:
            decided.append(judged)
        elif trace.span_id in rows or trace.span_id in ties:
            case = rows[trace.span_id].case if trace.span_id in rows else _tie(spec, trace)
            decided.append(replace(case, judged=judged.judged if judged else None))
        else:
            break
    first_left = different[len(decided)] if len(decided) < len(different) else None
    rest = [case_of(trace.judged).judged if trace.judged else None for trace in different[len(decided) :]]
    alike = [trace for trace in traces if trace.alike]
    batch = Batch(
        reviewed=tuple(decided),
        disagreements=len(different),
        known=known,
        agreed=tuple(rows[trace.span_id].case for trace in alike if trace.span_id in rows),
        presumed=tuple(_presumed(spec, trace) for trace in alike if trace.span_id not in rows),
        rest=tuple(judged or UNJUDGED for judged in rest) if any(rest) else (),
        alike_first=sum(trace.alike for trace in takewhile(lambda trace: trace is not first_left, traces)),
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
    return ComparedExample(example, old, new, grade_both(spec, example, old, new))


def _tie(spec: ModuleSpec, trace: DrawnTrace) -> PairedCase:
    return PairedCase(UNDECIDED_CLASS, _scored(spec, trace.incumbent, 0.0), _scored(spec, trace.candidate, 0.0))


def _presumed(spec: ModuleSpec, trace: DrawnTrace) -> PairedCase:
    """Return the case as if the like answers were right; they are wrong if they were invalid."""
    score = 0.0 if trace.incumbent.values is None else 1.0
    old, new = _scored(spec, trace.incumbent, score), _scored(spec, trace.candidate, score)
    return PairedCase(old.label or UNDECIDED_CLASS, old, new)


def _scored(spec: ModuleSpec, answer: StoredAnswer, score: float) -> ScoredAnswer:
    label = None if answer.values is None else spec.label(answer.values)
    return ScoredAnswer(score, label, answer.confidence)
