"""Writes the decision of a run into the manifest of a version, and reads it again."""

from collections import Counter
from typing import Any

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.gate import Calibration, Comparison, GateDecision
from autoopt_pipeline.modules.named_model import models_asked
from autoopt_pipeline.optimization.job import ModuleRun
from autoopt_pipeline.optimization.optimizers import SEED
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.optimization.report_draft import lm_usage
from autoopt_pipeline.optimization.search import Finalist
from autoopt_pipeline.registry.program_cost import CANDIDATE
from autoopt_pipeline.registry.records import PASSED, Manifest, Verdict, program_facts
from autoopt_pipeline.registry.version_store import VersionStore


def manifest_of(
    run: ModuleRun, report: Report, finalist: Finalist, decision: GateDecision, verdict: Verdict, reason: str
) -> Manifest:
    """Return the manifest of a finalist. `report` has what is known so far of the run."""
    asked = [run.lm.models[name] for name in models_asked(finalist.program, run.lm.name)]
    return Manifest(
        **program_facts(finalist.stored, run.job.window_end),
        **measured(report, decision, verdict, reason),
        run_id=run.job.run_id,
        parent=report.incumbent_version,
        window_start=run.job.window_start,
        window_end=run.job.window_end,
        examples=report.examples,
        provenance=report.provenance,
        optimizer=finalist.optimizer,
        tried=[tried.as_dict() for tried in report.tried],
        seed=SEED,
        lm=run.lm.names_asked_by(finalist.program),
        lm_settings=dict(asked[0].endpoint.values) if len(asked) == 1 and asked[0].endpoint else {},
        teacher_lm=report.teacher_lm,
        judge_lm=report.judge_lm,
        stand_in=any(model.is_stand_in for model in asked),
        **lm_usage(run.lm.meter),
        unread={program: dict(counts) for program, counts in report.unread.items()},
    )


def measured(report: Report, decision: GateDecision, verdict: Verdict, reason: str) -> dict[str, Any]:
    """Return the fields of a manifest that a decision sets."""
    return {
        "verdict": verdict.value,
        "reason": reason,
        **({"costs": dict(report.costs)} if CANDIDATE in report.costs else {}),
        "judged_by": dict(Counter(row.example.provenance.value for row in report.compared)),
        "incumbent_score": decision.comparison.incumbent_score,
        "candidate_score": decision.comparison.candidate_score,
        "gate": decision.numbers,
    }


def decision_in(manifest: Manifest, artifacts: VersionStore) -> GateDecision:
    """Return the gate's decision in a manifest. Raises `InvalidArtifact` if the manifest is damaged."""
    gate = manifest.gate
    try:
        verdict = Verdict(manifest.verdict)
        return GateDecision(
            Verdict.PROMOTED if verdict in PASSED else verdict,
            manifest.reason,
            gate["alpha"],
            Comparison(
                cases=int(gate["cases"]),
                incumbent_score=manifest.incumbent_score,
                candidate_score=manifest.candidate_score,
                gain=gate["gain"],
                fixed=int(gate["fixed"]),
                broken=int(gate["broken"]),
                reviews=int(gate["reviews"]),
                p_value=gate["p_value"],
                by_judge=int(gate.get("by_judge", 0)),
            ),
            Calibration(gate["incumbent_brier"], gate["candidate_brier"]) if "incumbent_brier" in gate else None,
            None,
            gate["alpha"],
        )
    except (KeyError, ValueError):
        raise InvalidArtifact(
            f"{artifacts.tenant_id}/{artifacts.module}: the manifest of {manifest.version} is damaged",
            "restore it from a backup",
        ) from None
