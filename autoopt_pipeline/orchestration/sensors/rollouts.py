"""Looks at what was promoted, while it and its predecessor serve side by side, and rolls back what is worse."""

import random
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError, PromotionConflict, UnknownModule, UnknownTenant
from autoopt_pipeline.modules.catalog import get_module, missing_module, modules
from autoopt_pipeline.names import WATCH_SENSOR
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.registry.rollout_records import Watched, all_watched, drop_watched, note_look
from autoopt_pipeline.registry.transitions import Watch, watch_since
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.rollouts.analysis import RolloutAnalysis, WatchVerdict
from autoopt_pipeline.rollouts.production import look_at
from autoopt_pipeline.rollouts.rollout import end_watch
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK, WATCH_ENDED
from autoopt_pipeline.run_history.ticks import WatchReport
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.store import read_config

_SECONDS_PER_TICK = 30
"""A sensor may take 60. What is left over is looked at in the next tick."""


def watch_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=WATCH_SENSOR,
        description="Compares new versions with their predecessors in production, and rolls back what is worse.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def promotion_watch_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SkipReason:
        connections = services.connect()
        began, now = time.monotonic(), datetime.now(UTC)
        watched = all_watched(connections.files)
        due = [each for each in watched if each.is_due(now)]
        # In no order, so that those which fail hold up no others for ever.
        random.shuffle(due)
        # Popped from the end: watches of modules that are gone are looked at last, for little can be done about them.
        due.sort(key=lambda each: each.module in modules())
        lines: list[str] = []
        gone: Counter[str] = Counter()
        errors: list[tuple[str, AutooptError]] = []
        while due and time.monotonic() - began < _SECONDS_PER_TICK:
            each = due.pop()
            try:
                line = look_once(context.instance, connections, each, now=now)
            except UnknownModule:
                gone[each.module] += 1
                continue
            except AutooptError as e:
                errors.append((f"{each.tenant_id}/{each.module}", e))
                context.log.error(f"{each.tenant_id}/{each.module}: {e}")
                continue
            if line:
                lines.append(line)
                context.log.info(line)
        for module, count in gone.items():
            context.log.error(f"{count} watches cannot go on: {missing_module(module)}")
        if errors:
            name, first = errors[0]
            raise dg.DagsterError(
                f"{len(errors)} of {len(watched)} watches could not be looked at, first {name}: {first}"
            ) from first
        context.update_cursor(WatchReport(watched=len(watched), left=len(due)).model_dump_json())
        left = f", {len(due)} left for the next tick" if due else ""
        stuck = (
            f", errors: {gone.total()} of modules that are not known here ({', '.join(sorted(gone))})" if gone else ""
        )
        return dg.SkipReason(f"{len(watched)} watched, {len(lines)} looked at{stuck}{left}")

    return promotion_watch_sensor


def look_once(instance: dg.DagsterInstance, connections: Connections, watched: Watched, *, now: datetime) -> str | None:
    """Look at one watch, and end it where that decides it. Returns what was seen, None where nothing is watched."""
    artifacts = connections.artifacts(watched.tenant_id, watched.module)
    watch = watch_since(artifacts.last_move())
    if watch is None:
        if watched.settled:
            drop_watched(connections.files, watched)
        return None
    try:
        config, _ = read_config(connections.configs, watched.tenant_id)
    except UnknownTenant:
        look = RolloutAnalysis(WatchVerdict.ENDED, "the tenant was removed")
        return _end(instance, artifacts, watch, look, stays=watch.move.to)
    if not config.watch.enabled:
        look = RolloutAnalysis(WatchVerdict.ENDED, "watch.enabled is false")
        return _end(instance, artifacts, watch, look, stays=watch.version)
    until = now - timedelta(seconds=connections.settings.settling_seconds)
    look = look_at(connections.phoenix, config, get_module(watched.module), watch, until=until)
    if look.verdict is WatchVerdict.WATCHING:
        note_look(connections.files, watched, now)
        return f"{artifacts.tenant_id}/{artifacts.module}: {watch.version or BASELINE}: {look.reason}"
    stays = watch.against if look.verdict is WatchVerdict.WORSE else watch.version
    return _end(instance, artifacts, watch, look, stays=stays)


def _end(
    instance: dg.DagsterInstance,
    artifacts: VersionStore,
    watch: Watch,
    look: RolloutAnalysis,
    *,
    stays: str | None,
) -> str | None:
    try:
        end_watch(artifacts, watch, look, stays=stays)
    except PromotionConflict:
        return None  # somebody's move ended it
    instance.report_runless_asset_event(
        dg.AssetObservation(
            artifacts.module,
            partition=artifacts.tenant_id,
            metadata={
                "event": ROLLED_BACK if look.verdict is WatchVerdict.WORSE else WATCH_ENDED,
                "verdict": look.verdict.value,
                "reason": look.reason,
                "from": watch.version or BASELINE,
                "to": stays or BASELINE,
                "score": _percent(look.newer.score),
                "score_of_predecessor": _percent(look.older.score),
                "comparisons": look.comparisons,
            },
        )
    )
    path = f"{watch.version or BASELINE} -> {stays or BASELINE}"
    return f"{artifacts.tenant_id}/{artifacts.module}: {path}: {look.reason}"


def _percent(score: float | None) -> str:
    return "unknown" if score is None else f"{100 * score:.1f} %"
