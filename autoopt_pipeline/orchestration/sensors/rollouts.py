"""Sensor that compares each new version with its predecessor in production, and rolls back regressions."""

import random
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError, PromotionConflict, UnknownModule, UnknownTenant
from autoopt_pipeline.modules.catalog import missing_module, modules
from autoopt_pipeline.names import ROLLOUT_SENSOR
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.registry.rollout_records import (
    RolloutIndexEntry,
    drop_index_entry,
    indexed_rollouts,
    record_analysis,
)
from autoopt_pipeline.registry.transitions import Rollout, active_rollout
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import AnalysisStatus, RolloutAnalysis
from autoopt_pipeline.rollouts.production import analyze
from autoopt_pipeline.rollouts.rollout import finish_rollout
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK, ROLLOUT_FINISHED
from autoopt_pipeline.run_history.ticks import RolloutReport
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.store import read_config
from autoopt_pipeline.text import percent

# Dagster allows a sensor 60. The next tick goes on with what is left over.
_SECONDS_PER_TICK = 30


def rollout_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=ROLLOUT_SENSOR,
        description="Compares new versions with their predecessors in production, and rolls back regressions.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def rollout_monitor_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SkipReason:
        connections = services.connect()
        began, now = time.monotonic(), datetime.now(UTC)
        rollouts = indexed_rollouts(connections.files)
        due = [entry for entry in rollouts if entry.is_due(now)]
        # In random order, so that rollouts that fail never keep the others waiting for ever.
        random.shuffle(due)
        # Popped from the end: rollouts of modules that are not installed come last.
        due.sort(key=lambda entry: entry.module in modules())
        lines: list[str] = []
        missing: Counter[str] = Counter()
        errors: list[tuple[str, AutooptError]] = []
        while due and time.monotonic() - began < _SECONDS_PER_TICK:
            entry = due.pop()
            try:
                line = check_rollout(context.instance, connections, entry, now=now)
            except UnknownModule:
                missing[entry.module] += 1
                continue
            except AutooptError as e:
                errors.append((f"{entry.tenant_id}/{entry.module}", e))
                context.log.error(f"{entry.tenant_id}/{entry.module}: {e}")
                continue
            if line:
                lines.append(line)
                context.log.info(line)
        for module, count in missing.items():
            context.log.error(f"{count} rollouts cannot continue: {missing_module(module)}")
        if errors:
            name, first = errors[0]
            raise dg.DagsterError(
                f"{len(errors)} of {len(rollouts)} rollouts could not be analyzed, first {name}: {first}"
            ) from first
        context.update_cursor(RolloutReport(active=len(rollouts), deferred=len(due)).model_dump_json())
        deferred = f", {len(due)} deferred to the next tick" if due else ""
        stuck = f", {missing.total()} of unknown modules ({', '.join(sorted(missing))})" if missing else ""
        return dg.SkipReason(f"{len(rollouts)} rollouts, {len(lines)} analyzed{stuck}{deferred}")

    return rollout_monitor_sensor


def check_rollout(
    instance: dg.DagsterInstance, connections: Connections, entry: RolloutIndexEntry, *, now: datetime
) -> str | None:
    """Analyze one rollout, and finish it when it is decided. Returns the result in a line; None without a rollout."""
    artifacts = connections.artifacts(entry.tenant_id, entry.module)
    rollout = active_rollout(artifacts.last_transition())
    if rollout is None:
        if entry.settled:
            drop_index_entry(connections.files, entry)
        return None
    try:
        config, _ = read_config(connections.configs, entry.tenant_id)
    except UnknownTenant:
        analysis = RolloutAnalysis(AnalysisStatus.ENDED, "the tenant was removed")
        return _finish(instance, artifacts, rollout, analysis, stays=rollout.transition.to_version)
    if not config.rollout.monitor:
        analysis = RolloutAnalysis(AnalysisStatus.ENDED, "rollout.monitor is false")
        stays = rollout.against if rollout.proving_alpha else rollout.version
        return _finish(instance, artifacts, rollout, analysis, stays=stays)
    until = now - timedelta(seconds=connections.settings.settling_seconds)
    analysis = analyze(connections.phoenix, config, artifacts, rollout, until=until)
    if analysis.status is AnalysisStatus.OPEN:
        to_review = analysis.reviews.to_review if analysis.reviews else 0
        record_analysis(connections.files, entry, now, to_review=to_review)
        return f"{artifacts.tenant_id}/{artifacts.module}: {rollout.version or BASELINE}: {analysis.reason}"
    failed = analysis.status in {AnalysisStatus.WORSE, AnalysisStatus.UNPROVEN}
    stays = rollout.against if failed else rollout.version
    return _finish(instance, artifacts, rollout, analysis, stays=stays)


def _finish(
    instance: dg.DagsterInstance,
    artifacts: VersionStore,
    rollout: Rollout,
    analysis: RolloutAnalysis,
    *,
    stays: str | None,
) -> str | None:
    try:
        finish_rollout(artifacts, rollout, analysis, stays=stays)
    except PromotionConflict:
        return None  # another transition has ended it
    instance.report_runless_asset_event(
        dg.AssetObservation(
            artifacts.module,
            partition=artifacts.tenant_id,
            metadata={
                "event": ROLLED_BACK if analysis.status is AnalysisStatus.WORSE else ROLLOUT_FINISHED,
                "status": analysis.status.value,
                "reason": analysis.reason,
                "from": rollout.version or BASELINE,
                "to": stays or BASELINE,
                "score": f"{percent(analysis.newer.score)} %",
                "score_of_predecessor": f"{percent(analysis.older.score)} %",
                "comparisons": analysis.comparisons,
            },
        )
    )
    path = f"{rollout.version or BASELINE} -> {stays or BASELINE}"
    return f"{artifacts.tenant_id}/{artifacts.module}: {path}: {analysis.reason}"
