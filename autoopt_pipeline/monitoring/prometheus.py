"""Metrics for Prometheus, read from Dagster's own records when they are asked for.

Counters count from the start of the exporter. Nobody knows beforehand which tenants there are, so the number of tenants
with a label of their own is limited. The others share `_other`, which no tenant can be called.
"""

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import dagster as dg
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from autoopt_pipeline.names import OPTIMIZATION_SENSOR, QUALITY_SENSOR, ROLLOUT_SENSOR
from autoopt_pipeline.registry.program_cost import CANDIDATE, INCUMBENT, read_costs
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.run_history.ended_runs import RunEnd, latest_end, read_ended_runs
from autoopt_pipeline.run_history.failures import WHOLE_RUN, first_failure
from autoopt_pipeline.run_history.lm_usage import usage_of
from autoopt_pipeline.run_history.module_events import (
    EVENT_LOG_LAG,
    EventKind,
    ModuleEvent,
    latest_id,
    newest_events,
    read_page,
)
from autoopt_pipeline.run_history.outcomes import COSTS, ROLLED_BACK, SPENT, read_attempts
from autoopt_pipeline.run_history.ticks import (
    PHOENIX,
    QualityReport,
    RolloutReport,
    TickReport,
    finished_ticks,
    read_tick,
    sensor_states,
)
from autoopt_pipeline.scheduling.conditions import Reason

OTHER_TENANTS = "_other"

_COST_GAUGES = {
    "tokens": "Mean tokens of a decision of the program that serves, as the last run measured it.",
    "dollars": "Mean dollars of a decision of the program that serves, if the price is known.",
    "seconds_p95": "95th percentile of the seconds of a decision of the program that serves.",
}

_QUALITY_GAUGES = {
    "level": ("autoopt_live_quality", "Mean score of what serves (0 to 1), on its last seven days with outcomes."),
    "low": ("autoopt_live_quality_low", "Lower end of its interval at 95 %."),
    "high": ("autoopt_live_quality_high", "Upper end of its interval at 95 %."),
}

_CACHED_SECONDS = 30
"""One read takes some seconds with ten thousand tenants, and several may ask."""

_FAILURES_SINCE = timedelta(days=7)
"""Failures before that are not counted."""

_ENDS: dict[str, RunEnd] = {"success": dg.DagsterEventType.RUN_SUCCESS, "failure": dg.DagsterEventType.RUN_FAILURE}

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
        self._ended = {status: latest_end(instance, end) for status, end in _ENDS.items()}
        self._events = {(kind, m): latest_id(instance, kind, m) for kind in EventKind for m in self._modules}

        self._registry = own = CollectorRegistry()
        self._decisions = Gauge(
            "autoopt_decisions",
            "Tenants' modules by decision, in the last planning tick that succeeded.",
            ["reason"],
            registry=own,
        )
        self._oldest_due = Gauge(
            "autoopt_oldest_due_seconds",
            "How long the longest waiting due module has waited; 0 for none.",
            registry=own,
        )
        self._tick_seconds = Gauge(
            "autoopt_tick_duration_seconds", "Duration of the sensor's last tick.", ["sensor"], registry=own
        )
        self._tick_at = Gauge(
            "autoopt_tick_timestamp_seconds", "Start of the sensor's last tick, in Unix time.", ["sensor"], registry=own
        )
        self._tick_failed = Gauge(
            "autoopt_tick_failed", "1 if the sensor's last tick failed, else 0.", ["sensor"], registry=own
        )
        self._phoenix = Gauge(
            "autoopt_phoenix_up", "1 or 0, from the last planning tick that asked Phoenix; NaN before.", registry=own
        )
        self._phoenix.set(float("nan"))
        self._run_seconds = Histogram(
            "autoopt_run_duration_seconds",
            "Duration of runs by status: success or failure.",
            ["status"],
            buckets=_RUN_BUCKETS,
            registry=own,
        )
        self._run_failures = Counter(
            "autoopt_run_failures",
            "Failed runs by the module that failed first and the class of its error.",
            ["module", "error"],
            registry=own,
        )
        self._verdicts = Counter(
            "autoopt_verdicts",
            "Outcomes by module and verdict, promotions among them.",
            ["module", "verdict"],
            registry=own,
        )
        self._rollbacks = Counter("autoopt_rollbacks", "Automatic rollbacks by module.", ["module"], registry=own)
        self._rollouts = Gauge("autoopt_rollouts_active", "Rollouts that are monitored in production.", registry=own)
        self._rollouts_deferred = Gauge(
            "autoopt_rollouts_deferred", "Rollout checks deferred to the next tick.", registry=own
        )
        self._lm_calls = Counter(
            "autoopt_lm_calls", "Language model calls, including those of failed attempts.", ["tenant"], registry=own
        )
        self._lm_tokens = Counter(
            "autoopt_lm_tokens", "Language model tokens, including those of failed attempts.", ["tenant"], registry=own
        )
        self._lm_dollars = Counter(
            "autoopt_lm_dollars",
            "Dollars for language models whose price is known, including those of failed attempts.",
            ["tenant"],
            registry=own,
        )
        self._cost = {
            name: Gauge(f"autoopt_decision_{name}", about, ["tenant", "module"], registry=own)
            for name, about in _COST_GAUGES.items()
        }
        self._quality = {
            end: Gauge(name, about, ["tenant", "module"], registry=own)
            for end, (name, about) in _QUALITY_GAUGES.items()
        }
        self._fell = Gauge(
            "autoopt_quality_fall_timestamp_seconds",
            "When the last fall in quality of what serves was found, in Unix time, by its cause.",
            ["tenant", "module", "cause"],
            registry=own,
        )
        self._failing = Gauge(
            "autoopt_failing_modules", "Tenants' modules whose last run failed, within seven days.", registry=own
        )
        self._failures = Gauge(
            "autoopt_consecutive_failures",
            "Failed runs of the module since its last outcome.",
            ["tenant", "module"],
            registry=own,
        )

        for module in self._modules:
            newest = newest_events(instance, EventKind.MATERIALIZATION, module, limit=max_tenants)
            for event in reversed(newest.items):
                self._show_cost(event)

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
                    result = read_tick(tick)
                    if result.failed == PHOENIX or result.phoenix_answered:
                        self._phoenix.set(result.failed != PHOENIX)
            # The cursor is that of the last tick that did not fail.
            data = state.sensor_instigator_data
            if sensor == OPTIMIZATION_SENSOR and data and (report := TickReport.load(data.cursor)):
                for reason in Reason:
                    self._decisions.labels(reason.value).set(report.decisions.get(reason.value, 0))
                due = report.oldest_due_since
                self._oldest_due.set((now - due).total_seconds() if due else 0)

            if sensor == ROLLOUT_SENSOR and data and (seen := RolloutReport.load(data.cursor)):
                self._rollouts.set(seen.active)
                self._rollouts_deferred.set(seen.deferred)

            if sensor == QUALITY_SENSOR and data and (report := QualityReport.load(data.cursor)):
                self._show_quality(report)

    def _show_quality(self, report: QualityReport) -> None:
        for gauge in (*self._quality.values(), self._fell):
            gauge.clear()
        for seen in report.seen[: self._max_tenants]:
            for end, gauge in self._quality.items():
                if (value := getattr(seen, end)) is not None:
                    gauge.labels(seen.tenant, seen.module).set(value)
            if seen.fell_at and seen.cause:
                self._fell.labels(seen.tenant, seen.module, seen.cause).set(seen.fell_at.timestamp())

    def _read_runs(self, now: datetime) -> None:
        for status, end in _ENDS.items():
            after = self._ended[status]
            ended = read_ended_runs(self._instance, self._modules, end, after, until=now - EVENT_LOG_LAG)
            self._ended[status] = ended.after
            for run in ended.runs:
                if run.run.started_at:
                    self._run_seconds.labels(status).observe((run.ended_at - run.run.started_at).total_seconds())
                if end is dg.DagsterEventType.RUN_FAILURE:
                    failure = first_failure(run.event)
                    self._run_failures.labels(failure.module or WHOLE_RUN, failure.error).inc()

    def _read_events(self, kind: EventKind, module: str, now: datetime) -> None:
        after, until = self._events[kind, module], now - EVENT_LOG_LAG
        for event in read_page(self._instance, kind, module, after=after, until=until):
            self._events[kind, module] = event.storage_id
            if kind is EventKind.MATERIALIZATION:
                if event.tenant and "verdict" in event.values:
                    self._verdicts.labels(module, str(event.values["verdict"])).inc()
                    self._count_spent(event)
                self._show_cost(event)
            elif event.values.get("event") == ROLLED_BACK:
                self._rollbacks.labels(module).inc()
                self._forget_cost(event)
            elif event.values.get("event") == SPENT:
                self._count_spent(event)

    def _show_cost(self, event: ModuleEvent) -> None:
        """Show what a decision of the program that serves after an outcome costs, if the run has measured it."""
        program = CANDIDATE if event.values.get("verdict") == Verdict.PROMOTED else INCUMBENT
        cost = read_costs(event.values.get(COSTS)).get(program)
        if cost is None or event.tenant is None or self._label(event.tenant) != event.tenant:
            return
        self._forget_cost(event)
        values = {"tokens": cost.tokens, "dollars": cost.dollars, "seconds_p95": cost.seconds_p95}
        for name, value in values.items():
            if value is not None:
                self._cost[name].labels(event.tenant, event.module).set(value)

    def _forget_cost(self, event: ModuleEvent) -> None:
        for gauge in self._cost.values():
            with suppress(KeyError):
                gauge.remove(event.tenant, event.module)

    def _count_spent(self, event: ModuleEvent) -> None:
        tenant = self._label(event.tenant or OTHER_TENANTS)
        usage = usage_of(event)
        self._lm_calls.labels(tenant).inc(usage.lm_calls)
        self._lm_tokens.labels(tenant).inc(usage.lm_tokens)
        if usage.lm_dollars:
            self._lm_dollars.labels(tenant).inc(usage.lm_dollars)

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
