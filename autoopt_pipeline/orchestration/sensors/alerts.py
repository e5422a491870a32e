"""One sensor for each receiver of alerts: it reads Dagster's records, and posts what is new in them.

The sensor's cursor is the outbox. It advances past what an alert is about only once the receiver has taken the alert,
so everything is delivered at least once. While the receiver is down, ticks fail. That leaves the cursor where it was,
and the next tick makes the alert again, of all that has happened by then.

- Sent twice: an alert that the receiver took in a tick that died before it ended, or that it took without saying so.
- Not sent: an alert that the receiver refuses for good (HTTP 4xx). It is logged as an error and passed over.
- One message: all failures of a quarter of an hour, grouped by cause; likewise all rollbacks, and all falls in
  quality.
- A tick reads the newest 1000 failed runs, 1000 events of each module and 500 ticks of each sensor at most, and posts
  five alerts at most, each for five seconds. After days of a dead receiver the alert is about the newest of them, and
  says so, as does the log.
"""

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import dagster as dg

from autoopt_pipeline.errors import AlertNotDelivered, AlertRefused
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.monitoring.alerts.collect import COLLECTORS, AlertCursor, AlertSource, start_cursor
from autoopt_pipeline.monitoring.alerts.delivery import Receiver, receivers, send
from autoopt_pipeline.monitoring.alerts.models import Kind
from autoopt_pipeline.run_history.module_events import EVENT_LOG_LAG
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings

_GROUPED = {Kind.ROLLED_BACK, Kind.QUALITY_FELL, Kind.RUN_FAILED, Kind.FAILING_REPEATEDLY}
_GROUP_INTERVAL = timedelta(minutes=15)
"""Least time between two alerts of one of these kinds. What happens meanwhile is in the second one."""


def build_alert_sensors(settings: Settings, watched: Collection[str]) -> list[dg.SensorDefinition]:
    """A sensor for each configured receiver. They also alert about ticks of the `watched` sensors."""
    return [_alert_sensor(receiver, settings, watched) for receiver in receivers(settings)]


def _alert_sensor(receiver: Receiver, settings: Settings, watched: Collection[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{receiver.name}_alert_sensor",
        description=f"Sends alerts about failures, rollbacks, falls in quality and outages to {receiver.name}.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = datetime.now(UTC)
        source = AlertSource(
            context.instance,
            sorted(modules()),
            watched,
            alert_after=settings.alert_after_failures,
            until=now - EVENT_LOG_LAG,
            ui_url=settings.dagster_ui_url,
        )
        cursor = AlertCursor.load(context.cursor)
        if cursor is None:
            context.update_cursor(start_cursor(source).model_dump_json())
            return dg.SkipReason("alerts begin with what happens from now on")
        sent = 0
        for kind, collect in COLLECTORS.items():
            if kind in _GROUPED and kind in cursor.sent_at and now - cursor.sent_at[kind] < _GROUP_INTERVAL:
                continue
            alert, after = collect(source, cursor)
            if alert:
                try:
                    send(receiver, alert)
                    context.log.info(f"sent {kind} {alert.id}: {alert.summary}: {alert.detail}")
                except AlertRefused as e:
                    context.log.error(f"passed over {kind} {alert.id}: {alert.summary}: {e}")
                except AlertNotDelivered as e:
                    if sent == 0:
                        raise
                    # A failed tick would forget what was delivered in it.
                    context.log.error(str(e))
                    break
                sent += 1
                after = after.model_copy(update={"sent_at": cursor.sent_at | {kind: now}})
            cursor = after
        context.update_cursor(cursor.model_dump_json())
        return dg.SkipReason(f"{sent} alerts")

    return alert_sensor
