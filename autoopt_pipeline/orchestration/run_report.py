"""A report as Dagster metadata: numbers that Dagster plots over time, and tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import dagster as dg

from autoopt_pipeline.evaluation.calibration import Bin
from autoopt_pipeline.evaluation.gate import GateDecision
from autoopt_pipeline.optimization.report import Change, ComparedExample, Report
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, describe_saving
from autoopt_pipeline.run_history.outcomes import (
    ANNOTATION_MARKS,
    ANNOTATION_TOTAL,
    COSTS,
    ESTIMATED,
    MODELS,
    REVIEWS_NEEDED,
)
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.text import listed_counts, listed_unread, percent
from autoopt_pipeline.traces.reader import Collected

MAX_UNUSABLE = 0.5
"""Fraction of decisions without a usable label above which the data check warns."""

MAX_MALFORMED = 0.1
"""Fraction of spans that the contract cannot read above which the data check warns: the instrumentation is broken."""

MIN_SHARE = 0.02
"""Fraction of the examples below which the data check names a label as rare."""

UNKNOWN = "not known"

_EXAMPLES_SHOWN = 20
_DEMOS_SHOWN = 15
_LABELS_SHOWN = 12
_MAX_CHARS = 200
_MARKDOWN = {ord(character): f"&#{ord(character)};" for character in "\\`*_~[]!<>&|"}


def report_metadata(
    report: Report,
    collected: Collected,
    *,
    config_version: int,
    labels: Sequence[str],
    phoenix_endpoint: str,
    comparison_url: str | None,
    overrides: Mapping[str, Any],
) -> dict[str, dg.MetadataValue]:
    """Everything that a person wants to know of a run, and what the next plan needs.

    The plan needs `window_end`, totals, labels and models.
    """
    numbers: dict[str, int | float] = {
        "spans_read": report.decisions,
        **{f"examples_{name}": count for name, count in report.examples.items()},
        "lm_calls": report.lm_calls,
        "lm_tokens": report.lm_tokens,
        "lm_input_tokens": report.lm_input_tokens,
        "lm_output_tokens": report.lm_output_tokens,
        "lm_cached_tokens": report.lm_cached_tokens,
        "seconds": report.seconds,
        "config_version": config_version,
    }
    numbers |= {f"{ESTIMATED}{name}": value for name, value in report.estimate.items()}
    if report.lm_dollars is not None:
        numbers["lm_dollars"] = report.lm_dollars
    if report.teacher_lm:
        numbers["teacher_lm_calls"] = report.teacher_calls
    if report.judge_lm:
        numbers["judge_lm_calls"] = report.judge_calls
    project_url = f"{phoenix_endpoint}/projects/{collected.project_id}"
    metadata: dict[str, Any] = {
        "verdict": dg.MetadataValue.text(report.verdict.value),
        "reason": dg.MetadataValue.text(scrub(report.reason)),
        "report": dg.MetadataValue.md(_markdown(report, project_url)),
    }
    if report.gate:
        scores = {
            "incumbent_score": report.gate.comparison.incumbent_score,
            "candidate_score": report.gate.comparison.candidate_score,
        }
        metadata |= {
            name: _number(value) for name, value in (scores | report.gate.numbers).items() if value is not None
        }
    if report.reviews_needed:
        metadata[REVIEWS_NEEDED] = _number(report.reviews_needed)
    if report.version:
        metadata["version"] = dg.MetadataValue.text(report.version)
    if report.optimizer:
        metadata["optimizer"] = dg.MetadataValue.text(report.optimizer)
    if comparison_url:
        metadata["phoenix_comparison"] = dg.MetadataValue.url(comparison_url)
    if report.unread:
        metadata["unread_answers"] = dg.MetadataValue.json(
            {name: dict(counts) for name, counts in report.unread.items()}
        )
    if report.costs:
        metadata[COSTS] = dg.MetadataValue.json({name: cost.model_dump() for name, cost in report.costs.items()})
    if report.program_lms:
        metadata["program_models"] = dg.MetadataValue.json(dict(report.program_lms))
    if overrides:
        metadata["overrides"] = dg.MetadataValue.json(overrides)
    metadata[ANNOTATION_TOTAL] = _number(collected.annotations.total)
    metadata[ANNOTATION_MARKS] = dg.MetadataValue.json(list(collected.annotations.marks))
    return metadata | {
        "incumbent": dg.MetadataValue.text(report.incumbent_version or "baseline"),
        "active_version": dg.MetadataValue.text(report.active_version or "baseline"),
        "language_model": dg.MetadataValue.text(
            f"{report.lm} (not a language model)" if report.stand_in else report.lm
        ),
        MODELS: dg.MetadataValue.json([report.lm, *report.other_lms]),
        "window_start": dg.MetadataValue.timestamp(report.window_start),
        "window_end": dg.MetadataValue.timestamp(report.window_end),
        "phoenix_traces": dg.MetadataValue.url(project_url),
        **{name: _number(value) for name, value in numbers.items()},
        "provenance": dg.MetadataValue.json(report.provenance),
        "balance": dg.MetadataValue.json(report.balance),
        "labels": dg.MetadataValue.json(list(labels)),
        "skipped_spans": dg.MetadataValue.json(report.unusable),
    }


def data_check(report: Report, labels: Sequence[str]) -> dg.AssetCheckResult:
    """Whether the traces were fit to learn from. It only warns, because the traffic is at fault and not the run."""
    usable = sum(report.provenance.values())
    problems = []
    if report.decisions and report.malformed > MAX_MALFORMED * report.decisions:
        problems.append(f"{report.malformed} of {report.decisions} spans cannot be read; see skipped_spans")
    elif report.decisions and report.decisions - usable > MAX_UNUSABLE * report.decisions:
        problems.append(f"{report.decisions - usable} of {report.decisions} decisions teach nothing")
    # Where the classes are plans, agents are no classes, and their balance is not counted.
    are_classes = report.balance.keys() <= set(labels)
    rare = [label for label in labels if are_classes and report.balance.get(label, 0) < MIN_SHARE * usable]
    if usable and rare:
        problems.append(f"hardly any examples of {', '.join(rare[:_LABELS_SHOWN])}")
    return dg.AssetCheckResult(
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems) or f"{usable} examples of {report.decisions} decisions",
        metadata={
            "provenance": dg.MetadataValue.json(report.provenance),
            "balance": dg.MetadataValue.json(report.balance),
            "skipped_spans": dg.MetadataValue.json(report.unusable),
            "malformed": report.malformed,
            "duplicates": report.examples["duplicates"],
            "near_duplicates": report.examples["near_duplicates"],
        },
    )


def _markdown(report: Report, project_url: str) -> str:
    parts = [f"**{report.verdict.value}**: {_escaped(report.reason)}"]
    if report.stand_in:
        parts.append(
            "> Answered by the offline **stand-in**, which is no language model. Scores say nothing of one; only that "
            "of a local router alone is real. Instructions do not change the stand-in's answers, so GEPA and MIPROv2 "
            "were not tried."
        )
    if report.unread:
        parts.append(f"Answers that could not be read, and count as wrong: {listed_unread(report.unread)}.")
    if report.tried:
        parts.append("### Candidates\n" + _candidates(report))
    if report.gate:
        parts.append(f"### Holdout ({report.gate.comparison.cases} traces)\n" + _gate(report, report.gate))
    if any(change.added or change.dropped or change.instructions for change in report.changes):
        parts.append("### What changed\n" + "\n\n".join(_change(change) for change in report.changes))
    if report.confusion:
        parts.append("### Confusion of the candidate\n" + _confusion(report.confusion))
    if report.compared:
        parts.append("### How far its confidence can be believed\n" + _reliability(report.reliability))
    parts += [
        f"### {title}\n" + _rows(rows, project_url)
        for title, rows in (("Fixed", report.fixed), ("Broken", report.broken))
        if rows
    ]
    parts += [f"- {_escaped(note)}" for note in report.notes]
    return scrub("\n\n".join(parts))  # its notes quote errors


def _gate(report: Report, gate: GateDecision) -> str:
    comparison, calibration = gate.comparison, gate.calibration
    table = _table(
        ["program", "model", "score", "Brier score (0 is best)", "a decision costs"],
        [
            [
                title,
                report.program_lms.get(program, report.lm),
                _score(score),
                f"{brier:.3f}" if brier is not None else UNKNOWN,
                str(report.costs.get(program) or UNKNOWN),
            ]
            for program, title, score, brier in (
                (
                    INCUMBENT,
                    INCUMBENT,
                    comparison.incumbent_score,
                    calibration.incumbent if calibration else None,
                ),
                (
                    CANDIDATE,
                    f"candidate ({report.optimizer or report.version})",
                    comparison.candidate_score,
                    calibration.candidate if calibration else None,
                ),
            )
        ],
    )
    judged_by: dict[str, int] = {}
    for row in report.compared:
        judged_by[row.example.provenance.value] = judged_by.get(row.example.provenance.value, 0) + 1
    lines = [str(gate.power)] if gate.power else []
    if saving := describe_saving(report.costs):
        lines.insert(0, saving)
    if judged_by:
        lines.insert(0, f"labels that decided: {', '.join(f'{n} {kind}' for kind, n in sorted(judged_by.items()))}")
    return table + "\n\n" + "\n".join(f"- {line}" for line in lines)


def _score(score: float | None) -> str:
    return UNKNOWN if score is None else f"{percent(score)} %"


def _change(change: Change) -> str:
    lines = [f"**{change.predictor}**: {change.summary}"]
    for kind, demos in (("new", change.added), ("dropped", change.dropped)):
        lines += [f"- {kind}: {_inline(demo)}" for demo in demos[:_DEMOS_SHOWN]]
        if len(demos) > _DEMOS_SHOWN:
            lines.append(f"- {kind}: and {len(demos) - _DEMOS_SHOWN} more")
    if change.instructions:
        lines.append("\nIts instructions:\n")
        signs = {"+": "new", "-": "dropped"}
        lines += [f"- {signs[line[0]]}: {_inline(line[1:])}" for line in change.instructions.splitlines() if line]
    return "\n".join(lines)


def _confusion(confusion: dict[str, dict[str, int]]) -> str:
    """The most frequent labels, and the sum of the others."""
    frequent = sorted(confusion, key=lambda label: -sum(confusion[label].values()))[:_LABELS_SHOWN]
    given: dict[str, int] = {}
    for row in confusion.values():
        for answer, count in row.items():
            given[answer] = given.get(answer, 0) + count
    answers = sorted(sorted(given, key=lambda answer: -given[answer])[:_LABELS_SHOWN])
    rows = []
    for label in sorted(frequent):
        row = confusion[label]
        others = sum(count for answer, count in row.items() if answer not in answers)
        rows.append([f"**{_inline(label)}**", *(str(row.get(answer, 0)) for answer in answers), str(others)])
    return _raw_table(["right answer / given", *map(_inline, answers), "others"], rows)


def _reliability(bins: Sequence[Bin]) -> str:
    """A reliability plot: where bar and confidence differ, the confidence is too high or too low."""
    rows = [
        [
            f"{one.low:.1f} - {one.high:.1f}",
            str(one.count),
            f"{percent(one.mean_confidence or 0.0)} %",
            f"{percent(one.mean_score or 0.0)} % {'█' * round(10 * (one.mean_score or 0.0))}",
        ]
        for one in bins
        if one.count
    ]
    return _table(["confidence", "answers", "mean confidence", "mean score"], rows)


def _rows(rows: Sequence[ComparedExample], project_url: str) -> str:
    shown = [
        [
            _link(row.example.query, f"{project_url}/traces/{quote(row.example.trace_id, safe='')}"),
            _inline(row.case.label),
            _inline(row.case.incumbent.label or "no valid answer"),
            _inline(row.case.candidate.label or "no valid answer"),
        ]
        for row in rows[:_EXAMPLES_SHOWN]
    ]
    table = _raw_table(["query", "right", "incumbent", "candidate"], shown)
    return table + (f"\n\nand {len(rows) - _EXAMPLES_SHOWN} more" if len(rows) > _EXAMPLES_SHOWN else "")


def _candidates(report: Report) -> str:
    rows = [
        [
            tried.optimizer,
            f"{percent(tried.dev_score)} %",
            str(tried.judged_on),
            str(tried.making_calls),
            str(tried.judging_calls),
            str(tried.cost or ""),
            listed_counts(tried.unread),
            "finalist" if tried.dropped_after is None else f"dropped after {tried.dropped_after}",
        ]
        for tried in report.tried
    ]
    rows.insert(0, ["(incumbent)", f"{percent(report.incumbent_dev_score or 0.0)} %", "", "", "", "", "", ""])
    return _table(
        [
            "candidate",
            "score on dev",
            "dev examples",
            "LM calls to make it",
            "LM calls to judge it",
            "a decision costs",
            "answers not read",
            "race",
        ],
        rows,
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return _raw_table([_inline(cell) for cell in header], [[_inline(cell) for cell in row] for row in rows])


def _raw_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _inline(text: str) -> str:
    """The beginning of a user's text."""
    return _escaped(text, _MAX_CHARS)


def _escaped(text: str, max_chars: int | None = None) -> str:
    """Text in one line with Markdown escaped: it makes no link, picture, tag, emphasis or cell of a table."""
    return " ".join(text.split())[:max_chars].translate(_MARKDOWN)


def _link(text: str, url: str) -> str:
    return f"[{_inline(text)}]({url})"


def _number(value: int | float) -> dg.MetadataValue:
    return dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(float(f"{value:.4g}"))
