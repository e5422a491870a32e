"""Metrics for Prometheus, read from Dagster's own records when they are asked for.

Counters count from the start of the exporter. What tenants are is not known beforehand, so of tenants that have a
label of their own there is a highest number; the others share `_other`, which no tenant can be called.
"""

import threading
import time
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from autoopt_pipeline.names import OPTIMIZATION_SENSOR, ROLLOUT_SENSOR
from autoopt_pipeline.run_history.feed import EndedRuns, read_ended_runs
from autoopt_pipeline.run_history.lm_usage import usage_of
from autoopt_pipeline.run_history.module_events import EVENT_LOG_LAG, EventKind, ModuleEvent, latest_id, read_page
from autoopt_pipeline.run_history.outcomes import ROLLED_BACK, SPENT, read_attempts
from autoopt_pipeline.run_history.runs import ended_at
from autoopt_pipeline.run_history.ticks import (
    PHOENIX,
    RolloutReport,
    TickReport,
    finished_ticks,
    read_tick,
    sensor_states,
)
from autoopt_pipeline.scheduling.conditions import Reason

OTHER_TENANTS = "_other"

_CACHED_SECONDS = 30
"""One read takes some seconds with ten thousand tenants, and several may ask."""

_FAILURES_SINCE = timedelta(days=7)
"""Failures before that are not counted."""

_RUN_BUCKETS = (10, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
"""Seconds: from a run without enough data to the longest that the local instance lets go on."""


class Exporter(Collector):
    """Collects from one instance. Raises what the instance raises: no answer is better than an old or an empty one."""

    def __init__(self, instance: dg.DagsterInstance, modules: Collection[str], *, max_tenants: int) -> None:
        self._instance = instance
        self._modules = sorted(modules)
        self._max_tenants = max_tenants
        self._labelled: set[str] = set()
        self._lock = threading.Lock()
        self._read_at: float | None = None
        self._runs = EndedRuns(after=datetime.now(UTC))
        self._events = {(kind, m): latest_id(instance, kind, m) for kind in EventKind for m in self._modules}

        self._registry = own = CollectorRegistry()
        self._decisions = Gauge(
            "autoopt_decisions",
            "Modules of tenants by decision, at the last look that did not fail.",
            ["reason"],
            registry=own,
        )
        self._oldest_due = Gauge(
            "autoopt_oldest_due_seconds",
            "How long the longest waiting module that is due has been so; 0 for none.",
            registry=own,
        )
        self._tick_seconds = Gauge(
            "autoopt_tick_duration_seconds", "What the sensor's last look took.", ["sensor"], registry=own
        )
        self._tick_at = Gauge(
            "autoopt_tick_timestamp_seconds",
            "When the sensor's last look began, in Unix time.",
            ["sensor"],
            registry=own,
        )
        self._tick_failed = Gauge(
            "autoopt_tick_failed", "1 where the sensor's last look failed, else 0.", ["sensor"], registry=own
        )
        self._phoenix = Gauge(
            "autoopt_phoenix_reachable", "1 or 0, by the last look that asked Phoenix; NaN before that.", registry=own
        )
        self._phoenix.set(float("nan"))
        self._run_seconds = Histogram(
            "autoopt_run_duration_seconds",
            "Runs that ended, by status: success or failure.",
            ["status"],
            buckets=_RUN_BUCKETS,
            registry=own,
        )
        self._verdicts = Counter(
            "autoopt_verdicts",
            "Outcomes by module and verdict, promotions among them.",
            ["module", "verdict"],
            registry=own,
        )
        self._rollbacks = Counter(
            "autoopt_rollbacks", "Tenants that the rollout moved back, by module.", ["module"], registry=own
        )
        self._watches = Gauge("autoopt_watches", "New versions that are watched in production.", registry=own)
        self._watches_left = Gauge(
            "autoopt_watches_left", "Looks at them that the sensor left for its next tick.", registry=own
        )
        self._lm_calls = Counter(
            "autoopt_lm_calls", "Calls of language models, of failed attempts too.", ["tenant"], registry=own
        )
        self._lm_tokens = Counter(
            "autoopt_lm_tokens", "Tokens of language models, of failed attempts too.", ["tenant"], registry=own
        )
        self._failing = Gauge(
            "autoopt_failing_modules", "Modules of tenants whose last run failed, within seven days.", registry=own
        )
        self._failures = Gauge(
            "autoopt_failures_in_a_row",
            "Runs of the module that failed since its last outcome.",
            ["tenant", "module"],
            registry=own,
        )

    def describe(self) -> Iterator[Metric]:
        return iter(self._registry.collect())

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if self._read_at is None or time.monotonic() - self._read_at >= _CACHED_SECONDS:
                self._read(datetime.now(UTC))
                self._read_at = time.monotonic()
            yield from self._registry.collect()

    def _read(self, now: datetime) -> None:
        self._read_ticks(now)
        self._read_runs(now)
        for module in self._modules:
            for kind in EventKind:
                self._read_events(kind, module, now)
        self._read_failures(now)

    def _read_ticks(self, now: datetime) -> None:
        for sensor, state in sensor_states(self._instance).items():
            for tick in finished_ticks(self._instance, state, limit=1):
                self._tick_seconds.labels(sensor).set((tick.end_timestamp or tick.timestamp) - tick.timestamp)
                self._tick_at.labels(sensor).set(tick.timestamp)
                self._tick_failed.labels(sensor).set(tick.is_failure)
                if sensor == OPTIMIZATION_SENSOR:
                    said = read_tick(tick)
                    if said.service == PHOENIX or said.works is None or PHOENIX in said.works:
                        self._phoenix.set(said.service != PHOENIX)
            # The cursor is that of the last look that did not fail.
            data = state.sensor_instigator_data
            if sensor == OPTIMIZATION_SENSOR and data and (report := TickReport.load(data.cursor)):
                for reason in Reason:
                    self._decisions.labels(reason.value).set(report.decisions.get(reason.value, 0))
                due = report.oldest_due_since
                self._oldest_due.set((now - due).total_seconds() if due else 0)

            if sensor == ROLLOUT_SENSOR and data and (seen := RolloutReport.load(data.cursor)):
                self._watches.set(seen.active)
                self._watches_left.set(seen.deferred)

    def _read_runs(self, now: datetime) -> None:
        self._runs, records = read_ended_runs(self._instance, self._modules, self._runs, until=now - EVENT_LOG_LAG)
        for record in records:
            if record.start_time:
                seconds = ended_at(record).timestamp() - record.start_time
                self._run_seconds.labels(record.dagster_run.status.value.lower()).observe(seconds)

    def _read_events(self, kind: EventKind, module: str, now: datetime) -> None:
        after, until = self._events[kind, module], now - EVENT_LOG_LAG
        for event in read_page(self._instance, kind, module, after=after, until=until):
            self._events[kind, module] = event.storage_id
            if kind is EventKind.MATERIALIZATION:
                if event.tenant and "verdict" in event.values:
                    self._verdicts.labels(module, str(event.values["verdict"])).inc()
                    self._count_spent(event)
            elif event.values.get("event") == ROLLED_BACK:
                self._rollbacks.labels(module).inc()
            elif event.values.get("event") == SPENT:
                self._count_spent(event)

    def _count_spent(self, event: ModuleEvent) -> None:
        tenant = self._label(event.tenant or OTHER_TENANTS)
        usage = usage_of(event)
        self._lm_calls.labels(tenant).inc(usage.lm_calls)
        self._lm_tokens.labels(tenant).inc(usage.lm_tokens)

    def _read_failures(self, now: datetime) -> None:
        attempts = read_attempts(self._instance, self._modules, failures_since=now - _FAILURES_SINCE)
        failing = {key: attempt.failures for key, attempt in attempts.items() if attempt.failures}
        self._failing.set(len(failing))
        self._failures.clear()
        worst = sorted(failing, key=lambda key: -failing[key])[: self._max_tenants]
        for tenant, module in worst:
            self._failures.labels(tenant, module).set(failing[tenant, module])

    def _label(self, tenant: str) -> str:
        if len(self._labelled) < self._max_tenants:
            self._labelled.add(tenant)
        return tenant if tenant in self._labelled else OTHER_TENANTS
