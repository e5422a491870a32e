"""Reads the decisions of a rollout's two versions from Phoenix, and analyzes them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.online_score import live_outcome
from autoopt_pipeline.modules.spec import Label, LoggedDecision, ModuleSpec
from autoopt_pipeline.registry.rollout_records import disagreements
from autoopt_pipeline.registry.transitions import Rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import MAX_DECISIONS, RolloutAnalysis, VersionSample, analyze_rollout
from autoopt_pipeline.rollouts.reviewed import compare_by_reviews
from autoopt_pipeline.span_contract import ARM, BASELINE, CANARY, MODULE, PROGRAM_VERSION, project_name
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import read_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import bounded_window, read_decisions


def analyze_now(
    phoenix: Phoenix, configs: TenantConfigStore, artifacts: VersionStore, rollout: Rollout, *, settling_seconds: float
) -> RolloutAnalysis:
    """Analyze a rollout without acting on it. Decisions of the last `settling_seconds` do not count, because some of
    them may still be on their way to Phoenix. Raises `UnknownTenant`, `InvalidConfig`, and what `Phoenix` raises."""
    config, _ = read_config(configs, artifacts.tenant_id)
    until = datetime.now(UTC) - timedelta(seconds=settling_seconds)
    return analyze(phoenix, config, artifacts, rollout, until=until)


def analyze(
    phoenix: Phoenix, config: RoutingConfigUnified, artifacts: VersionStore, rollout: Rollout, *, until: datetime
) -> RolloutAnalysis:
    """Compare the decisions that both versions made before `until` (UTC), and the reviews of their disagreements."""
    spec = get_module(artifacts.module)
    labels = labels_of(spec, config)
    decisions, end = _read_since(phoenix, config.tenant_id, spec, rollout.transition.at, until)
    newer, older = split_by_version(spec, labels, rollout, decisions)
    draws = artifacts.rollout_draws(rollout.transition)
    asked = [trace for trace in disagreements(draws) if trace.time < end]
    return analyze_rollout(
        newer,
        older,
        age=until - rollout.transition.at,
        longest=timedelta(days=config.rollout.max_days),
        proving_alpha=rollout.proving_alpha,
        reviews=compare_by_reviews(spec, labels, asked, {d.span_id: d for d in decisions}) if draws else None,
    )


def _read_since(
    phoenix: Phoenix, tenant_id: str, spec: ModuleSpec, start: datetime, until: datetime
) -> tuple[list[LoggedDecision], datetime]:
    """Read the decisions since the rollout began, and return the time before which they were made, too.

    Under heavy traffic only the first decisions are read, at most twice `MAX_DECISIONS`. A tenant without a project has
    no decisions.
    """
    project = phoenix.project(project_name(tenant_id))
    if project is None:
        return [], until
    _, end = bounded_window(phoenix, project, spec, start, until, most=2 * MAX_DECISIONS, newest=False)
    return read_decisions(phoenix, project, spec, start=start, end=end, also=(MODULE, PROGRAM_VERSION, ARM)), end


def split_by_version(
    spec: ModuleSpec, labels: Sequence[Label], rollout: Rollout, decisions: Sequence[LoggedDecision]
) -> tuple[VersionSample, VersionSample]:
    """Return both versions' decisions with their outcomes, the newer version's first.

    Only spans that name one of these versions and its role in this rollout count.
    """
    decisions = [decision for decision in decisions if decision.attributes[MODULE] == spec.name]
    # A judge may lean to one program. It may warn of a loss, and cannot prove a gain.
    judges = rollout.proving_alpha is None
    return (
        _sample(spec, labels, decisions, rollout.version, as_canary=rollout.is_canary, judges=judges),
        _sample(spec, labels, decisions, rollout.against, as_canary=not rollout.is_canary, judges=judges),
    )


def _sample(
    spec: ModuleSpec,
    labels: Sequence[Label],
    decisions: Sequence[LoggedDecision],
    version: str | None,
    *,
    as_canary: bool,
    judges: bool,
) -> VersionSample:
    """One version's sample, without requests of servers that have not read the transition yet. There the predecessor
    still serves as the active version."""
    own = [
        decision
        for decision in decisions
        if decision.attributes[PROGRAM_VERSION] == (version or BASELINE)
        and (decision.attributes[ARM] == CANARY) == as_canary
    ]
    outcomes = (live_outcome(spec, labels, decision, judges=judges) for decision in own)
    return VersionSample(len(own), tuple(outcome for outcome in outcomes if outcome))
