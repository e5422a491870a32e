"""Bringing a proven version into service, and what a watch's verdict does to it."""

from datetime import UTC, datetime

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.records import Move
from autoopt_pipeline.registry.rollout_records import WatchResult
from autoopt_pipeline.registry.transitions import Watch
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import RolloutAnalysis
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.config import WatchSettings

WATCH = "watch"
"""Who moves the active version at the end of a watch."""


def roll_out(
    artifacts: VersionStore, version: str, *, expected: str | None, by: str, why: str, settings: WatchSettings
) -> Move:
    """Make a version active, or a canary first, as the tenant has it; its predecessor keeps a share where it can serve.

    Raises `PromotionConflict` and `InvalidArtifact` as `VersionStore.move`.
    """
    if not (settings.enabled and _serves(artifacts, expected)):
        return artifacts.move(version, expected=expected, by=by, why=why)
    if settings.canary_share:
        canary = {version: settings.canary_share}
        return artifacts.move(expected, expected=expected, by=by, why=why, judged=False, canary=canary)
    canary = {expected or BASELINE: settings.holdback_share}
    return artifacts.move(version, expected=expected, by=by, why=why, canary=canary)


def end_watch(artifacts: VersionStore, watch: Watch, look: RolloutAnalysis, *, stays: str | None) -> Move:
    """Let one of two versions have all requests, and remember what was seen of both.

    Raises `PromotionConflict` when somebody else made a move meanwhile, which ended the watch.
    """
    result = WatchResult(
        sequence=watch.move.sequence,
        began=watch.move.at,
        ended=datetime.now(UTC),
        version=watch.version,
        against=watch.against,
        verdict=look.verdict.value,
        reason=look.reason,
        decisions=look.newer.decisions,
        decisions_against=look.older.decisions,
        outcomes=len(look.newer.outcomes),
        outcomes_against=len(look.older.outcomes),
        score=look.newer.score,
        score_against=look.older.score,
    )
    # A canary that becomes active begins a new allowance, as every promotion does. What goes back does not.
    judged = watch.is_canary and stays == watch.version
    move = artifacts.move(stays, expected=watch.move.to, by=WATCH, why=look.reason, judged=judged, after=watch.move)
    artifacts.add_watch(result)
    return move


def _serves(artifacts: VersionStore, version: str | None) -> bool:
    try:
        return version is None or bool(artifacts.load(version))
    except InvalidArtifact:
        return False
