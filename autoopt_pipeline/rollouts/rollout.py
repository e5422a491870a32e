"""Starts and finishes the rollout of a version."""

from datetime import UTC, datetime

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.records import Transition
from autoopt_pipeline.registry.rollout_records import RolloutResult
from autoopt_pipeline.registry.transitions import Rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import RolloutAnalysis
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.config import RolloutPolicy

# The actor of the transition that finishes a rollout.
ROLLOUT_MONITOR = "rollout monitor"


def roll_out(
    artifacts: VersionStore, version: str, *, expected: str | None, actor: str, reason: str, policy: RolloutPolicy
) -> Transition:
    """Make a version active, or a canary first, according to the policy. A predecessor that can serve keeps a fraction.

    Raises `PromotionConflict` and `InvalidArtifact` as `VersionStore.transition` does.
    """
    if not (policy.monitor and _serves(artifacts, expected)):
        return artifacts.transition(version, expected=expected, actor=actor, reason=reason)
    if policy.canary_fraction:
        return start_canary(
            artifacts, version, expected=expected, actor=actor, reason=reason, fraction=policy.canary_fraction
        )
    canary = {expected or BASELINE: policy.holdback_fraction}
    return artifacts.transition(version, expected=expected, actor=actor, reason=reason, canary=canary)


def start_canary(
    artifacts: VersionStore,
    version: str,
    *,
    expected: str | None,
    actor: str,
    reason: str,
    fraction: float,
    proving_alpha: float | None = None,
) -> Transition:
    """Give a version a fraction of the requests before it becomes active.

    With `proving_alpha`, it is not proven yet, and becomes active only if its outcomes prove it better at this alpha.
    Raises `PromotionConflict` and `InvalidArtifact` as `VersionStore.transition` does.
    """
    return artifacts.transition(
        expected,
        expected=expected,
        actor=actor,
        reason=reason,
        resets_alpha_budget=False,
        canary={version: fraction},
        proving_alpha=proving_alpha,
    )


def finish_rollout(
    artifacts: VersionStore, rollout: Rollout, analysis: RolloutAnalysis, *, stays: str | None
) -> Transition:
    """Give all requests to the version that stays, and store the result.

    Raises `PromotionConflict` if another transition has ended the rollout in the meantime.
    """
    result = RolloutResult(
        sequence=rollout.transition.sequence,
        began=rollout.transition.at,
        ended=datetime.now(UTC),
        version=rollout.version,
        against=rollout.against,
        status=analysis.status.value,
        reason=analysis.reason,
        decisions=analysis.newer.decisions,
        decisions_against=analysis.older.decisions,
        outcomes=len(analysis.newer.outcomes),
        outcomes_against=len(analysis.older.outcomes),
        score=analysis.newer.score,
        score_against=analysis.older.score,
    )
    # A canary that becomes active gets a new alpha budget, as every promotion does. A rollback does not.
    resets_alpha_budget = rollout.is_canary and stays == rollout.version
    transition = artifacts.transition(
        stays,
        expected=rollout.transition.to_version,
        actor=ROLLOUT_MONITOR,
        reason=analysis.reason,
        resets_alpha_budget=resets_alpha_budget,
        after=rollout.transition,
    )
    artifacts.add_rollout_result(result)
    return transition


def _serves(artifacts: VersionStore, version: str | None) -> bool:
    try:
        return version is None or bool(artifacts.load(version))
    except InvalidArtifact:
        return False
