"""Sensor that monitors the quality of what serves, of each tenant about once a day."""

import heapq
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.evaluation.quality_monitor import with_replay
from autoopt_pipeline.modules.catalog import get_module, modules
from autoopt_pipeline.names import QUALITY_SENSOR
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.registry.program_cost import CANDIDATE
from autoopt_pipeline.registry.quality_records import ModuleQuality, QualityFall, TenantCheck, read_checks, write_checks
from autoopt_pipeline.registry.replays import ModelReplay, drop_replay, reported_replays
from autoopt_pipeline.registry.version_store import read_pointers
from autoopt_pipeline.rollouts.live_quality import (
    continue_monitor,
    load_monitor,
    monitor_of,
    open_cause,
    save_monitor,
    summarized,
)
from autoopt_pipeline.run_history.outcomes import FALL_EXPLAINED, QUALITY_FELL
from autoopt_pipeline.run_history.ticks import QualityReport, SeenQuality
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.traces.client import ALIASES_PER_DOCUMENT, Project

# Dagster allows a sensor 60. The next tick goes on with what is left over.
_SECONDS_PER_TICK = 30

# Levels that the sensor leaves for metrics. They are in its cursor, which Dagster stores with every tick.
_MOST_SHOWN = 100

_EVERY = timedelta(days=1)

# When a tenant is checked again after an error, so that those that fail never keep the others waiting.
_AFTER_ERROR = timedelta(hours=1)


def quality_sensor(settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=QUALITY_SENSOR,
        description="Monitors the quality of what serves, of each tenant about once a day, and says when it fell.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def live_quality_sensor(context: dg.SensorEvaluationContext, services: Services) -> dg.SkipReason:
        connections = services.connect()
        began, now = time.monotonic(), datetime.now(UTC)
        stored = connections.configs.current()
        known = read_checks(connections.files)
        checks = {tenant: check for tenant, check in known.items() if tenant in stored}
        due = sorted(
            (tenant for tenant in stored if tenant not in checks or checks[tenant].due <= now),
            key=lambda tenant: (checks[tenant].due.timestamp() if tenant in checks else 0.0, tenant),
        )
        done, fell = 0, 0
        errors: list[tuple[str, AutooptError]] = []
        try:
            for replay in reported_replays(connections.files):
                if time.monotonic() - began >= _SECONDS_PER_TICK:
                    break
                try:
                    seen = take_replay(context.instance, connections, replay)
                except AutooptError as e:
                    errors.append((f"{replay.tenant_id}/{replay.module}", e))
                else:
                    _show(checks, replay, seen)
                drop_replay(connections.files, replay)
            while done < len(due) and time.monotonic() - began < _SECONDS_PER_TICK:
                batch = due[done : done + ALIASES_PER_DOCUMENT]
                projects = connections.phoenix.projects([project_name(tenant) for tenant in batch])
                for tenant in batch:
                    checker = TenantChecker(
                        context.instance, connections, stored[tenant], projects.get(project_name(tenant)), now
                    )
                    checks[tenant] = checker.check(checks.get(tenant))
                    done += 1
                    for line in checker.fell:
                        context.log.warning(line)
                    for name, error in checker.errors:
                        context.log.error(f"{name}: {error}")
                    fell += len(checker.fell)
                    errors += checker.errors
                    if time.monotonic() - began >= _SECONDS_PER_TICK:
                        break
        finally:
            if checks != known:
                write_checks(connections.files, checks)
        if errors:
            name, first = errors[0]
            raise dg.DagsterError(f"{len(errors)} modules could not be checked, first {name}: {first}") from first
        report = QualityReport(deferred=len(due) - done, seen=_most_notable(checks))
        context.update_cursor(report.model_dump_json())
        return dg.SkipReason(f"{done} tenants checked, {fell} modules fell, {len(due) - done} tenants deferred")

    return live_quality_sensor


def take_replay(instance: dg.DagsterInstance, connections: Connections, replay: ModelReplay) -> ModuleQuality | None:
    """Let a replay tell the cause of the last fall. Returns the quality of what serves, None if that is another version
    or is not monitored yet."""
    files, tenant, module = connections.files, replay.tenant_id, replay.module
    before = load_monitor(files, tenant, module)
    if before is None or before.version != replay.version:
        return None
    after = with_replay(before, replay)
    if before.fall and after.fall and before.fall.cause != after.fall.cause:
        report_fall(instance, tenant, module, replay.version, after.fall, event=FALL_EXPLAINED, reason=str(after.fall))
    save_monitor(files, tenant, module, after)
    return summarized(after)


def _show(checks: dict[str, TenantCheck], replay: ModelReplay, seen: ModuleQuality | None) -> None:
    check = checks.get(replay.tenant_id)
    if check and seen and replay.module in check.modules:
        checks[replay.tenant_id] = check.model_copy(update={"modules": {**check.modules, replay.module: seen}})


def report_fall(
    instance: dg.DagsterInstance,
    tenant: str,
    module: str,
    version: str | None,
    fall: QualityFall,
    *,
    event: str,
    reason: str,
) -> None:
    metadata: Mapping[str, str | int] = {
        "event": event,
        "reason": reason,
        "version": version or "baseline",
        "outcomes": fall.outcomes,
    }
    instance.report_runless_asset_event(dg.AssetObservation(module, partition=tenant, metadata=metadata))


class TenantChecker:
    """One check of a tenant whose project is given, None if it has none. `fell` and `errors` say what it found."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        connections: Connections,
        entry: StoredConfig,
        project: Project | None,
        now: datetime,
    ) -> None:
        self._instance, self._connections, self._entry, self._project = instance, connections, entry, project
        self._now, self._until = now, now - timedelta(seconds=connections.settings.settling_seconds)
        self.fell: list[str] = []
        self.errors: list[tuple[str, AutooptError]] = []

    def check(self, last: TenantCheck | None) -> TenantCheck:
        """Continue the monitors of the tenant's modules. An error of one of them does not stop the others."""
        tenant = self._entry.tenant_id
        project = self._project
        annotations = sum(project.annotations.values()) if project else 0
        if project is None or not _is_active(project, last, annotations):
            return TenantCheck(
                due=self._now + _EVERY,
                until=self._until,
                annotations=annotations,
                modules=last.modules if last else {},
            )
        try:
            config = self._entry.parse()
            monitored = [module for module in modules() if _is_monitored(config, module)]
            pointers = read_pointers(self._connections.files, [(tenant, module) for module in monitored])
        except AutooptError as e:
            self.errors.append((tenant, e))
            return _after_error(last, self._now)
        new_annotations = last is None or annotations != last.annotations
        seen: dict[str, ModuleQuality] = {}
        for module in monitored:
            pointer = pointers[tenant, module]
            try:
                if isinstance(pointer, AutooptError):
                    raise pointer
                version = pointer.version if pointer else None
                seen[module] = self._continue(project, config, module, version, new_annotations=new_annotations)
            except AutooptError as e:
                self.errors.append((f"{tenant}/{module}", e))
                if last and module in last.modules:
                    seen[module] = last.modules[module]
        if self.errors:
            return _after_error(last, self._now, seen)
        return TenantCheck(due=self._now + _EVERY, until=self._until, annotations=annotations, modules=seen)

    def _continue(
        self,
        project: Project,
        config: RoutingConfigUnified,
        module: str,
        version: str | None,
        *,
        new_annotations: bool,
    ) -> ModuleQuality:
        tenant, files = self._entry.tenant_id, self._connections.files
        before = monitor_of(load_monitor(files, tenant, module), version, until=self._until, begins=self._entry.since)
        after, fall = continue_monitor(
            self._connections.phoenix,
            project,
            config,
            get_module(module),
            before,
            until=self._until,
            new_annotations=new_annotations,
        )
        if fall:
            fall = open_cause(fall, config, asks_model=self._asks_model(module, version))
            after = after.model_copy(update={"fall": fall})
            # Before the state, because one alarm too many is better than none.
            self._report(module, version, fall)
        save_monitor(files, tenant, module, after)
        return summarized(after)

    def _asks_model(self, module: str, version: str | None) -> bool:
        """Whether a version asks a language model, which a local router alone does not, as its holdout has shown."""
        manifest = self._connections.artifacts(self._entry.tenant_id, module).manifest(version) if version else None
        cost = manifest.costs.get(CANDIDATE) if manifest else None
        return cost is None or cost.lm_calls > 0

    def _report(self, module: str, version: str | None, fall: QualityFall) -> None:
        tenant = self._entry.tenant_id
        self.fell.append(f"{tenant}/{module}: {fall}")
        report_fall(
            self._instance,
            tenant,
            module,
            version,
            fall,
            event=QUALITY_FELL,
            reason=f"{fall}; the monitor goes on with the new level as its reference",
        )


def _most_notable(checks: Mapping[str, TenantCheck]) -> tuple[SeenQuality, ...]:
    """What metrics show: modules that fell, the last ones first, and then those with the most outcomes."""
    known = [
        (-quality.fall.at.timestamp() if quality.fall else 0.0, -quality.outcomes, tenant, module, quality)
        for tenant, check in checks.items()
        for module, quality in check.modules.items()
        if quality.outcomes or quality.fall
    ]
    return tuple(
        SeenQuality(
            tenant=tenant,
            module=module,
            level=quality.level,
            low=quality.low,
            high=quality.high,
            fell_at=quality.fall.at if quality.fall else None,
            cause=quality.fall.cause if quality.fall else None,
        )
        for *_, tenant, module, quality in heapq.nsmallest(_MOST_SHOWN, known, key=lambda each: each[:4])
    )


def _is_active(project: Project, last: TenantCheck | None, annotations: int) -> bool:
    """Whether there may be new decisions, or new annotations of earlier ones."""
    if project.newest is None:
        return False
    return last is None or last.until is None or project.newest > last.until or annotations != last.annotations


def _is_monitored(config: RoutingConfigUnified, module: str) -> bool:
    return config.quality.monitor and module in config.modules


def _after_error(
    last: TenantCheck | None, now: datetime, seen: Mapping[str, ModuleQuality] | None = None
) -> TenantCheck:
    """Check again soon, from what was there before: nothing of it counts as seen."""
    before = last or TenantCheck(due=now)
    modules = dict(seen) if seen is not None else before.modules
    return before.model_copy(update={"due": now + _AFTER_ERROR, "modules": modules})
