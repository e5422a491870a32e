"""What becomes of a candidate that the gate has decided on: what the mode allows, and what then serves."""

import math
from collections.abc import Mapping
from datetime import timedelta

from autoopt_pipeline.errors import PromotionConflict
from autoopt_pipeline.evaluation.gate import GateDecision
from autoopt_pipeline.optimization.job import ModuleRun, OptimizationJob
from autoopt_pipeline.optimization.manifests import manifest_of
from autoopt_pipeline.optimization.model_replay import Answered, replay_set
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.optimization.report_draft import ReportDraft
from autoopt_pipeline.optimization.search import Finalist
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, ProgramCost, dollar_ratio, saving
from autoopt_pipeline.registry.records import Manifest, Verdict
from autoopt_pipeline.registry.transitions import Rollout, active_rollout
from autoopt_pipeline.rollouts.analysis import outcomes_to_prove
from autoopt_pipeline.rollouts.rollout import roll_out, start_canary
from autoopt_pipeline.tenants.config import RolloutPolicy, RoutingConfigUnified

# The gain and the incumbent's score for which the report says how long a proof in production takes.
PROVEN_GAIN, USUAL_SCORE = 0.08, 0.7


def verdict_of(
    decision: GateDecision,
    config: RoutingConfigUnified,
    module: str,
    costs: Mapping[str, ProgramCost],
    *,
    same_lms: bool,
) -> tuple[Verdict, str]:
    """Return the verdict with its reason, of which the approval is a part if a person has to give it.

    `same_lms` tells whether candidate and incumbent ask the same language models.
    """
    if decision.verdict is not Verdict.PROMOTED:
        return decision.verdict, decision.reason
    both = costs.get(CANDIDATE), costs.get(INCUMBENT)
    saved = saving(*both, config.objective.min_saving, same_lms=same_lms) if decision.not_worse else None
    return allowed(f"{decision.reason}; {saved}" if saved else decision.reason, config, module, costs)


def allowed(
    reason: str, config: RoutingConfigUnified, module: str, costs: Mapping[str, ProgramCost]
) -> tuple[Verdict, str]:
    """Return what the tenant's mode allows for a version that passed the gate for this reason.

    `costs` are those of candidate and incumbent, as far as they are known.
    """
    mode = config.mode_of(module)
    ratio, limit = dollar_ratio(costs.get(CANDIDATE), costs.get(INCUMBENT)), config.objective.max_cost_increase
    is_dear = ratio is not None and ratio > limit
    if is_dear:
        reason = f"a decision costs {ratio:.1f} times as much, and objective.max_cost_increase is {limit:g}; {reason}"
    if mode == "observe":
        return Verdict.WOULD_HAVE_PROMOTED, f"mode is observe; {reason}"
    if mode == "propose":
        return Verdict.AWAITING_APPROVAL, f"mode is propose; {reason}"
    return Verdict.AWAITING_APPROVAL if is_dear else Verdict.PROMOTED, reason


def conclude(
    run: ModuleRun,
    draft: ReportDraft,
    manifest: Manifest,
    verdict: Verdict,
    reason: str,
    *,
    active: str | None,
    answered: Answered = (),
) -> Report:
    """Roll out a promoted version, unless the `active` version has changed meanwhile."""
    if verdict is not Verdict.REJECTED:
        _keep_answers(run, manifest, answered)
    if verdict is Verdict.PROMOTED:
        try:
            transition = roll_out(
                run.artifacts,
                manifest.version,
                expected=active,
                actor=actor_of(run.job.run_id),
                reason=reason,
                policy=run.config.rollout,
            )
            active = transition.to_version
            rollout = active_rollout(transition)
            if rollout and rollout.is_canary:
                verdict, reason = Verdict.CANARY, f"{reason}; {describe_canary(rollout)}"
        except PromotionConflict as e:
            verdict, reason = Verdict.STALE, str(e)
    draft.add(version=manifest.version, active_version=active)
    return draft.end(verdict, reason)


def start_proof(
    run: ModuleRun,
    draft: ReportDraft,
    finalist: Finalist,
    decision: GateDecision,
    alpha: float,
    *,
    active: str | None,
    answered: Answered,
) -> Report:
    """Let the finalist prove itself in production, unless the `active` version has changed meanwhile."""
    verdict, reason = Verdict.CANARY, _describe_proof(run.job, alpha)
    manifest = manifest_of(run, draft.report, finalist, decision, Verdict.INCONCLUSIVE, reason)
    run.artifacts.save(finalist.stored, manifest)
    _keep_answers(run, manifest, answered)
    try:
        start_canary(
            run.artifacts,
            manifest.version,
            expected=active,
            actor=actor_of(run.job.run_id),
            reason=reason,
            fraction=_proving_fraction(run.config.rollout),
            proving_alpha=alpha,
        )
    except PromotionConflict as e:
        verdict, reason = Verdict.STALE, str(e)
    draft.add(version=manifest.version, active_version=active, reviews_needed=0)
    return draft.end(verdict, reason)


def actor_of(run_id: str) -> str:
    """Return the actor of a run's transitions."""
    return f"run {run_id}"


def describe_canary(rollout: Rollout) -> str:
    return (
        f"{rollout.version} has had {100 * rollout.fraction:.4g} % of the requests since "
        f"{rollout.transition.at:%Y-%m-%d %H:%M} UTC, and becomes active "
        + ("if its outcomes prove it better" if rollout.proving_alpha else "unless it is clearly worse")
    )


def _keep_answers(run: ModuleRun, manifest: Manifest, answered: Answered) -> None:
    """Keep what the candidate answered on the holdout, so that later runs can ask it again."""
    if answered:
        run.artifacts.keep_replay_set(replay_set(manifest.version, answered, manifest.lm))


def _describe_proof(job: OptimizationJob, alpha: float) -> str:
    """Say what proves the candidate in production, and how long that takes at the traffic of the window."""
    fraction = _proving_fraction(job.config.rollout)
    needed = outcomes_to_prove(PROVEN_GAIN, alpha, score=USUAL_SCORE, per_canary=(1 - fraction) / fraction)
    days = (job.window_end - job.window_start) / timedelta(days=1)
    daily = len(job.decisions) / days * fraction if days else 0.0
    takes = f", {math.ceil(needed / daily)} days at this traffic if all outcomes are reported" if daily else ""
    return (
        f"may be better; {100 * fraction:.4g} % of requests go to it until outcomes prove it, at alpha "
        f"{alpha:.2g}: some {needed} of its outcomes for +{100 * PROVEN_GAIN:.0f} points{takes}"
    )


def _proving_fraction(policy: RolloutPolicy) -> float:
    return policy.canary_fraction or policy.holdback_fraction
