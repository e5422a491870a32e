"""The report of a run while it is written: the only thing of a run that changes."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.lm.metering import Meter, Role
from autoopt_pipeline.modules.spec import ExampleSet
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.report import Report, sizes
from autoopt_pipeline.registry.records import Verdict


class ReportDraft:
    """The report as far as it is known, so that every step can end with it. `notes` are added to it at its end."""

    def __init__(self, run: ModuleRun, first: Report, notes: Iterable[str] = ()) -> None:
        self._run, self.report, self.notes = run, first, [*notes]

    def add(self, **facts: Any) -> None:
        """Set fields of the report."""
        self.report = replace(self.report, **facts)

    def end(self, verdict: Verdict, reason: str) -> Report:
        """Return the report with its verdict, and with what the run has used."""
        self._run.log(f"{verdict.value}: {reason}")
        meter = self._run.lm.meter
        return replace(
            self.report,
            verdict=verdict,
            reason=reason,
            notes=tuple(self.notes),
            teacher_calls=meter.calls_by_role[Role.TEACHER],
            judge_calls=meter.calls_by_role[Role.JUDGE],
            **lm_usage(meter),
            seconds=round(time.monotonic() - self._run.started, 2),
        )


def lm_usage(meter: Meter) -> dict[str, Any]:
    """Return the fields of a report, or of a manifest, that say what a run has used of language models."""
    return {
        "lm_calls": meter.calls,
        "lm_tokens": meter.tokens,
        "lm_input_tokens": meter.input_tokens,
        "lm_output_tokens": meter.output_tokens,
        "lm_cached_tokens": meter.cached_tokens,
        "lm_dollars": meter.dollars,
    }


def first_report(run: ModuleRun, built: ExampleSet, split: Split, incumbent_version: str | None) -> Report:
    """Return what a report says of the examples, the models and the incumbent, before anything is decided."""
    return Report(
        tenant_id=run.config.tenant_id,
        module=run.spec.name,
        verdict=Verdict.NOT_ENOUGH_DATA,
        reason="",
        window_start=run.job.window_start,
        window_end=run.job.window_end,
        decisions=len(run.job.decisions),
        examples=sizes(split) | {"redacted": built.redacted},
        provenance=dict(Counter(example.provenance.value for example in built.examples)),
        balance=dict(Counter(example.label for example in built.examples).most_common()),
        unusable=built.unusable,
        malformed=built.malformed,
        incumbent_version=incumbent_version,
        version=None,
        active_version=incumbent_version,
        lm=run.lm.name,
        other_lms=tuple(sorted(run.lm.others)),
        stand_in=run.lm.is_stand_in,
        teacher_lm=None if run.teacher.name == run.lm.name else run.teacher.name,
    )
