"""The sensor that tells people. It reads news from Dagster alone, and never waits for a receiver for long."""

import base64
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import dagster as dg
from pydantic import BaseModel, ConfigDict

from autoopt_pipeline.errors import AlertNotDelivered
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.monitoring.alerts.delivery import Receiver, receivers, send
from autoopt_pipeline.monitoring.alerts.outbox import Outbox, deliver
from autoopt_pipeline.monitoring.alerts.rules import Memory, tell
from autoopt_pipeline.names import ALERT_SENSOR
from autoopt_pipeline.run_history.feed import Position, Source
from autoopt_pipeline.run_history.ticks import causes, finished_ticks, sensor_states
from autoopt_pipeline.secrets import scrubbing_errors
from autoopt_pipeline.settings import Settings


class State(BaseModel):
    """The sensor's cursor: how far it has read, what it has told, and what waits for each receiver."""

    model_config = ConfigDict(frozen=True)

    position: Position
    memory: Memory = Memory()
    outboxes: dict[str, Outbox] = {}

    def given_up(self, now: datetime) -> int:
        return sum(len(outbox.given_up(now)) for outbox in self.outboxes.values())

    def without_given_up(self, now: datetime) -> "State":
        kept = {name: outbox.without(outbox.given_up(now)) for name, outbox in self.outboxes.items()}
        return self.model_copy(update={"outboxes": kept})

    def dump(self) -> str:
        """Compressed, for Dagster keeps the cursor of every tick, and ten thousand tenants can fail at once."""
        return base64.b64encode(zlib.compress(self.model_dump_json().encode())).decode()

    @classmethod
    def load(cls, cursor: str | None) -> "State | None":
        """None where there is none, or where another release or somebody else wrote it."""
        try:
            return cls.model_validate_json(zlib.decompress(base64.b64decode(cursor))) if cursor else None
        except (ValueError, zlib.error):
            return None


def build_alerting(settings: Settings, watched: Collection[str]) -> list[dg.SensorDefinition]:
    """The alert sensor, which also minds the ticks of the `watched` sensors. None where nobody is to be told."""
    listening = receivers(settings)
    return [_alert_sensor(settings, listening, watched)] if listening else []


def _alert_sensor(settings: Settings, listening: list[Receiver], watched: Collection[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=ALERT_SENSOR,
        description=f"Tells {' and '.join(r.name for r in listening)} of failures, rollbacks and outages.",
        minimum_interval_seconds=settings.sensor_interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
    )
    @scrubbing_errors()
    def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = datetime.now(UTC)
        source = Source(context.instance, sorted(modules()), watched, settings.dagster_ui_url)
        loaded = State.load(context.cursor)
        if loaded is None:
            context.update_cursor(State(position=source.start(now)).dump())
            return dg.SkipReason("what happens from now on is told")
        state = _let_go(context.instance, loaded, now)

        position, events = source.read(state.position, now=now)
        memory, alerts = tell(state.memory, events, now=now, after=settings.alert_after_failures)
        outboxes = {r.name: state.outboxes.get(r.name, Outbox()).put(alerts) for r in listening}
        # Side by side, so that one that is slow does not delay the other.
        with ThreadPoolExecutor(len(listening)) as pool:
            delivered = list(pool.map(lambda r: deliver(outboxes[r.name], partial(send, r), now=now), listening))
        after = {r.name: outbox for r, (outbox, _) in zip(listening, delivered, strict=True)}
        context.update_cursor(State(position=position, memory=memory, outboxes=after).dump())

        for alert in alerts:
            context.log.info(f"{alert.kind}: {alert.summary}")
        for _, error in delivered:
            if error:
                context.log.error(str(error))
        waiting = [f"{len(o.waiting)} wait for {name}, tried again at {o.next_try:%H:%M:%S} UTC"
                   for name, o in after.items() if o.waiting and o.next_try]  # fmt: skip
        return dg.SkipReason("; ".join([f"{len(alerts)} alerts", *waiting]))

    return alert_sensor


def _let_go(instance: dg.DagsterInstance, state: State, now: datetime) -> State:
    """The state without what is given up. That fails a tick, once, and the tick after lets go.

    A failed tick leaves the cursor where it was. So nothing else is done in it, and the last tick says whether it
    was that one.
    """
    if not state.given_up(now):
        return state
    own = sensor_states(instance).get(ALERT_SENSOR)
    last = finished_ticks(instance, own, limit=1) if own else []
    if last and any(error.cls_name == AlertNotDelivered.__name__ for error in causes(last[0])):
        return state.without_given_up(datetime.fromtimestamp(last[0].timestamp, UTC))
    names = [name for name, outbox in state.outboxes.items() if outbox.given_up(now)]
    raise AlertNotDelivered(
        f"{state.given_up(now)} alerts for {' and '.join(names)} are given up: nobody took them for a day",
        "check the address, and what listens there, with 'autoopt alerts test'",
    )
