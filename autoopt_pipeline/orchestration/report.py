"""A report as Dagster metadata: numbers that plot over time, and tables for people."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from autoopt_pipeline.modules.spec import Example
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.traces.collect import Collected

_EXAMPLES_SHOWN = 20


def report_metadata(
    report: Report, collected: Collected, config_version: int, phoenix_endpoint: str
) -> dict[str, dg.MetadataValue]:
    """Everything a person wants to see of a run, and what the next plan needs (`window_end` and totals)."""
    numbers: dict[str, int | float] = {
        "decisions_read": report.decisions,
        **{f"examples_{name}": count for name, count in report.examples.items()},
        "lm_calls": report.lm_calls,
        "lm_tokens": report.lm_tokens,
        "seconds": report.seconds,
        "config_version": config_version,
    }
    totals = {"trace_total": collected.trace_total, "annotation_total": collected.annotation_total}
    numbers |= {name: total for name, total in totals.items() if total is not None}
    metadata: dict[str, Any] = {
        "verdict": dg.MetadataValue.text(report.verdict.value),
        "reason": dg.MetadataValue.text(report.reason),
        "report": dg.MetadataValue.md(_markdown(report)),
    }
    if report.gate:
        comparison = report.gate.comparison
        metadata |= {
            "score_before": _number(comparison.incumbent_score),
            "score_after": _number(comparison.candidate_score),
            "fixed": _number(comparison.fixed),
            "broken": _number(comparison.broken),
            "p_value": _number(comparison.p_value),
            "alpha": _number(report.gate.alpha),
        }
    if report.version:
        metadata["version"] = dg.MetadataValue.text(report.version)
    return metadata | {
        "incumbent": dg.MetadataValue.text(report.incumbent_version or "baseline"),
        "active_version": dg.MetadataValue.text(report.active_version or "baseline"),
        "language_model": dg.MetadataValue.text(
            f"{report.lm} (not a language model)" if report.stand_in else report.lm
        ),
        "window_start": dg.MetadataValue.timestamp(report.window_start),
        "window_end": dg.MetadataValue.timestamp(report.window_end),
        "phoenix_traces": dg.MetadataValue.url(f"{phoenix_endpoint}/projects/{collected.project_id}"),
        **{name: _number(value) for name, value in numbers.items()},
        "provenance": dg.MetadataValue.json(report.provenance),
        "unusable_decisions": dg.MetadataValue.json(report.unusable),
    }


def _markdown(report: Report) -> str:
    parts = [f"**{report.verdict.value}**: {report.reason}"]
    if report.stand_in:
        parts.append("> Answered by the offline **stand-in**, which is no language model. Scores say nothing of one.")
    if report.tried:
        rows = [[t.optimizer, _percent(t.dev_score), str(t.lm_calls)] for t in report.tried]
        rows.insert(0, ["(incumbent)", _percent(report.incumbent_dev_score or 0.0), ""])
        parts.append("### Candidates\n" + _table(["optimizer", "score on dev", "LM calls"], rows))
    if report.gate:
        comparison = report.gate.comparison
        parts.append(
            f"### Holdout ({comparison.cases} traces)\n"
            + _table(
                ["", "score"],
                [
                    ["incumbent", _percent(comparison.incumbent_score)],
                    [
                        f"candidate ({report.optimizer})",
                        _percent(comparison.candidate_score),
                    ],
                ],
            )
        )
    if report.changes:
        parts.append("### What changed\n" + "\n".join(f"- {_inline(change)}" for change in report.changes))
    if report.confusion:
        parts.append("### Confusion of the candidate\n" + _confusion(report.confusion))
    parts += [
        f"### {title}\n" + _examples(examples)
        for title, examples in (("Fixed", report.fixed), ("Broken", report.broken))
        if examples
    ]
    parts += [f"- {note}" for note in report.notes]
    return "\n\n".join(parts)


def _confusion(confusion: dict[str, dict[str, int]]) -> str:
    answers = sorted({answer for row in confusion.values() for answer in row})
    rows = [[f"**{label}**", *(str(row.get(answer, 0)) for answer in answers)] for label, row in confusion.items()]
    return _table(["right answer \\ given", *answers], rows)


def _examples(examples: Sequence[Example]) -> str:
    lines = [f"- {_inline(example.query)} → {_inline(example.label)}" for example in examples[:_EXAMPLES_SHOWN]]
    if len(examples) > _EXAMPLES_SHOWN:
        lines.append(f"- and {len(examples) - _EXAMPLES_SHOWN} more")
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines)


def _inline(text: str) -> str:
    """Text of a user, kept from breaking out of its place in the Markdown."""
    shown = " ".join(text.split())[:200]
    return shown.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _number(value: int | float) -> dg.MetadataValue:
    return dg.MetadataValue.int(value) if isinstance(value, int) else dg.MetadataValue.float(float(f"{value:.4g}"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
