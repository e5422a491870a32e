"""Verdicts of earlier runs with which a run ends before it searches: of a lost run, of a canary, of observing."""

from collections.abc import Sequence
from datetime import timedelta

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.sequential_test_log import OPEN
from autoopt_pipeline.optimization.job import ModuleRun, OptimizationJob
from autoopt_pipeline.optimization.manifests import decision_in
from autoopt_pipeline.optimization.promotion import actor_of, allowed, conclude, describe_canary
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.registry.promotion_blocks import promotion_block_reason
from autoopt_pipeline.registry.records import Manifest, Transition, Verdict
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.transitions import Rollout, active_rollout


def promotion_of_lost_run(job: OptimizationJob, transitions: Sequence[Transition]) -> Transition | None:
    """Return the last transition if a lost run of this attempt made it, because that run could not report it."""
    last = transitions[-1] if transitions else None
    return last if last and last.actor in map(actor_of, job.lost_runs) else None


def report_earlier_promotion(run: ModuleRun, draft: ReportDraft, transition: Transition) -> Report:
    """Return the report of the lost run that made a transition, with the facts in its version's manifest."""
    rollout = active_rollout(transition)
    canary = rollout if rollout and rollout.is_canary else None
    manifest = run.artifacts.manifest(str(canary.version if canary else transition.to_version))
    draft.notes.append(f"{transition.actor} reached this verdict before it was lost, so no search was made again")
    if manifest:
        # A manifest is written before the last step of a sequential test.
        decided = manifest.gate and manifest.verdict not in OPEN
        draft.add(
            version=manifest.version,
            active_version=transition.to_version,
            incumbent_version=transition.from_version,
            optimizer=manifest.optimizer,
            gate=decision_in(manifest, run.artifacts) if decided else None,
        )
    if canary:
        return draft.end(Verdict.CANARY, f"{transition.reason}; {describe_canary(canary)}")
    return draft.end(Verdict.PROMOTED, transition.reason)


def undecided_canary(run: ModuleRun, rollout: Rollout | None) -> str | None:
    """Describe a canary that must be decided before another candidate is searched for. None if there is none."""
    if rollout is None or not rollout.is_canary or not run.config.rollout.monitor:
        return None
    since = run.config.retrain_after(run.spec.name)
    return None if since and since > rollout.transition.at else describe_canary(rollout)


def observed_version(run: ModuleRun, draft: ReportDraft, *, active: str | None) -> Manifest | None:
    """Return the version that would have been promoted, had the mode not been `observe`. None if there is none.

    Its proof holds only against the incumbent, the models and the labels of that time.
    """
    if run.config.mode_of(run.spec.name) == "observe":
        return None
    manifests, _ = run.artifacts.list_versions()
    observed = [manifest for manifest in manifests if manifest.verdict == Verdict.WOULD_HAVE_PROMOTED]
    newest = max(observed, key=lambda manifest: manifest.created_at, default=None)
    if newest is None or newest.parent != active:
        return None
    if why := _why_outdated(run, newest):
        draft.notes.append(f"{newest.version} was observed to be better, and is not promoted, because {why}")
        return None
    return newest


def promote_observed(run: ModuleRun, draft: ReportDraft, observed: Manifest, *, active: str | None) -> Report:
    """Promote a version that was observed to be better, or propose it, without another search."""
    draft.notes.append("no search was made, because this version was proven while the mode was observe")
    draft.add(optimizer=observed.optimizer, gate=decision_in(observed, run.artifacts), costs=observed.costs)
    proof = observed.reason.removeprefix("mode is observe; ")
    verdict, reason = allowed(proof, run.config, run.spec.name, observed.costs)
    manifest = observed.model_copy(update={"verdict": verdict.value, "reason": reason})
    run.artifacts.record_result(manifest)
    return conclude(run, draft, manifest, verdict, reason, active=active)


def _why_outdated(run: ModuleRun, manifest: Manifest) -> str | None:
    """Say why an observed version has to be proven again; None if it need not."""
    retrain_after = run.config.retrain_after(run.spec.name)
    if retrain_after and retrain_after > manifest.created_at:
        return "the module is to be retrained"
    if run.job.window_end - manifest.window_end > timedelta(seconds=run.config.lookback_seconds):
        return "its traces are older than the lookback"
    if block := promotion_block_reason(run.artifacts, manifest.program_sha256):
        return block
    try:
        stored = run.artifacts.load(manifest.version)
        program = deserialize(run.spec, run.labels, stored, run.lm.models, encoder=run.job.encoder)
    except InvalidArtifact as e:
        return str(e)
    asked = run.lm.names_asked_by(program)
    return None if manifest.lm == asked else f"it was proven with {manifest.lm}, and would ask {asked}"
