"""What is worth an alert, what its message says, and how it gets to its receiver."""

import hashlib
import hmac
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autoopt_pipeline.errors import AlertNotDelivered, AlertRefused, InvalidSettings
from autoopt_pipeline.monitoring.alerts import delivery
from autoopt_pipeline.monitoring.alerts.delivery import receivers, send, slack_body
from autoopt_pipeline.monitoring.alerts.messages import failure_alert, outage_alert
from autoopt_pipeline.monitoring.alerts.models import MAX_AFFECTED, Affected, Alert, Kind, make_alert
from autoopt_pipeline.orchestration.sensors import alerts as alert_sensors
from autoopt_pipeline.run_history.module_failures import ModuleFailure
from autoopt_pipeline.run_history.ticks import PHOENIX, TickResult, find_outages
from autoopt_pipeline.settings import Settings
from tests.support.alert_receiver import Receiver, alert_receiver
from tests.support.command_line import autoopt
from tests.support.tenant_history import failed_run

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LM_DOWN = "language model openai/x: timed out after 30 s -> check AUTOOPT_LM_API_BASE"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with alert_receiver() as listening:
        yield listening


def failed(tenant: str, cause: str = LM_DOWN, number: int | None = 1, minute: int = 0) -> ModuleFailure:
    return ModuleFailure(tenant, "routing", f"run-{tenant}-{minute}", NOON + minute * MINUTE, cause, number)


def message(*failures: ModuleFailure, kind: Kind = Kind.RUN_FAILED, newest_only: bool = False) -> Alert:
    return failure_alert(kind, failures, ui_url=None, newest_only=newest_only)


def test_a_thousand_tenants_that_fail_for_one_cause_are_one_message_that_lists_some() -> None:
    alert = message(*(failed(f"tenant-{n}", LM_DOWN.replace("30", str(n))) for n in range(1000)))
    assert alert.summary == "tenant-0/routing and 999 more failed"
    assert len(alert.affected) == MAX_AFFECTED
    assert alert.affected_total == 1000
    assert alert.detail == LM_DOWN.replace("30", "0")
    assert len(alert.model_dump_json()) < 20_000


def test_causes_that_name_whom_they_hit_are_one_cause() -> None:
    alert = message(*(failed(t, f"tenant {t} has no project {t}-cogniverse-routing -> send") for t in ("a", "org:b")))
    assert alert.detail == "tenant a has no project a-cogniverse-routing -> send"


def test_each_of_many_causes_is_listed_and_the_most_frequent_one_first() -> None:
    rare = [failed(f"t{n}", f"cause {chr(97 + n)}") for n in range(5)]
    alert = message(*rare, *(failed(f"u{n}") for n in range(100)))
    assert alert.summary == "u0/routing and 104 more failed"
    assert alert.detail == f"6 causes, mostly: {LM_DOWN}"
    assert [affected.tenant for affected in alert.affected[:6]] == ["u0", "t0", "t1", "t2", "t3", "t4"]


def test_a_module_that_failed_twice_is_listed_once_with_its_newest_cause() -> None:
    alert = message(failed("a", "old", None), failed("a", "new", None, minute=5))
    assert [affected.detail for affected in alert.affected] == ["new (it has had an outcome since)"]
    assert alert.at == NOON + 5 * MINUTE


def test_a_module_that_keeps_failing_is_named_with_how_often() -> None:
    alert = message(failed("a", number=3), kind=Kind.FAILING_REPEATEDLY)
    assert alert.summary == "a/routing failed repeatedly"
    assert alert.affected[0].detail == f"3 in a row: {LM_DOWN}"


def test_an_alert_that_does_not_count_all_says_so() -> None:
    assert "only the newest are in here; language model" in message(failed("a"), newest_only=True).detail


def tick(minute: int, failed: str | None, sensor: str = "s", *, phoenix_answered: bool = True) -> TickResult:
    return TickResult(sensor, NOON + minute * MINUTE, failed, "down", phoenix_answered and failed is None)


def test_a_server_that_fails_some_ticks_in_a_row_is_one_outage() -> None:
    assert find_outages([tick(n, PHOENIX if n != 2 else None) for n in range(5)], after=3) == []
    (outage,) = find_outages([tick(n, PHOENIX) for n in range(9)], after=3)
    assert (outage.since, outage.at, outage.over) == (NOON, NOON + 2 * MINUTE, False)
    (outage,) = find_outages([*(tick(n, PHOENIX) for n in range(9)), tick(9, None)], after=3)
    assert outage.over
    alert = outage_alert([outage], 3)
    assert alert.summary == "Phoenix failed 3 ticks in a row, since 2026-01-01 12:00:00 UTC, and works again"


def test_a_tick_that_did_not_ask_phoenix_neither_ends_its_outage_nor_interrupts_it() -> None:
    down = [tick(n, PHOENIX) for n in (0, 2, 4)]
    idle = [tick(n, None, phoenix_answered=False) for n in (1, 3, 5)]
    (outage,) = find_outages([*down, *idle], after=3)
    assert not outage.over
    (outage,) = find_outages([*down, *idle, tick(6, None)], after=3)
    assert outage.over


sensor_ticks = st.lists(st.tuples(st.sampled_from("st"), st.sampled_from([None, PHOENIX, "store"])), max_size=40)


@given(sensor_ticks, st.integers(1, 3), st.integers(0, 40))
def test_every_outage_is_found_however_ticks_are_divided_between_reads(
    history: list[tuple[str, str | None]], after: int, cut: int
) -> None:
    ticks = [tick(n, failed, sensor) for n, (sensor, failed) in enumerate(history)]
    outages = find_outages(ticks, after=after)
    for subject in (PHOENIX, "store"):
        rows = ["".join({None: "u", subject: "d"}.get(f, "") for s, f in history if s == sensor) for sensor in "st"]
        assert any("d" * after in row for row in rows) == any(outage.subject == subject for outage in outages)
        of_subject = [outage for outage in outages if outage.subject == subject]
        assert all(outage.over for outage in of_subject[:-1])
    earlier = find_outages(ticks[:cut], after=after)
    assert [outage.at for outage in earlier] == [outage.at for outage in outages if outage.at < NOON + cut * MINUTE]


def test_what_tenants_write_makes_no_link_in_slack_and_calls_nobody() -> None:
    about = Affected(tenant="a", module="routing", detail="<!channel> & co", url="http://ui/runs/1")
    alert = make_alert(Kind.RUN_FAILED, NOON, "a\nfailed", detail="<http://evil|click> " + "x" * 9000, affected=[about])
    text = json.loads(slack_body(alert))["text"]
    assert "<http://ui/runs/1|a/routing>: &lt;!channel&gt; &amp; co" in text
    assert "&lt;http://evil|click&gt;" in text
    assert len(text) < 1000


def test_the_webhook_gets_signed_json(receiver: Receiver) -> None:
    settings = Settings.model_validate({"alert_webhook_url": receiver.url, "alert_webhook_secret": "s3cret"})
    alert = make_alert(Kind.TEST, NOON, "hello")
    assert send(receivers(settings)[0], alert) == 200
    expected = hmac.new(b"s3cret", receiver.bodies[0], hashlib.sha256).hexdigest()
    assert receiver.headers[0]["x-autoopt-signature"] == f"sha256={expected}"
    assert Alert.model_validate_json(receiver.bodies[0]) == alert


@pytest.mark.parametrize(
    ("status", "silence", "refused", "said"),
    [
        (500, 0.0, False, "slack answered HTTP 500"),
        (429, 0.0, False, "slack answered HTTP 429"),
        (403, 0.0, True, "slack answered HTTP 403"),
        (302, 0.0, False, "slack answered HTTP 302"),
        (200, 2.0, False, "slack does not answer (ReadTimeout)"),
    ],
)
def test_trouble_of_a_receiver_is_said_without_its_address(
    receiver: Receiver,
    status: int,
    silence: float,
    refused: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(delivery, "_TIMEOUT_SECONDS", 1.0)
    receiver.status, receiver.silence = status, silence
    (slack,) = receivers(Settings.model_validate({"alert_slack_url": receiver.url}))
    with caplog.at_level(logging.INFO, logger="root"), pytest.raises(AlertNotDelivered) as e:
        send(slack, make_alert(Kind.TEST, NOON, "hello"))
    assert e.value.what == said
    assert isinstance(e.value, AlertRefused) == refused
    assert receiver.asked == 1
    assert "hidden" not in str(e.value) + caplog.text + repr(slack)
    assert e.value.__cause__ is None
    assert e.value.__suppress_context__ or e.value.__context__ is None


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["fail", "fail", "succeed", "roll back"]), st.sampled_from("ab")),
        st.tuples(st.just("tick"), st.sampled_from(["up", "down", "dies"])),
    ),
    max_size=12,
)


def test_everything_is_delivered_at_least_once_whenever_the_receiver_is_down(
    instance: dg.DagsterInstance, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once where no tick dies between delivery and its end. A message comes again only with the same id."""
    monkeypatch.setattr(alert_sensors, "EVENT_LOG_LAG", timedelta(0))
    monkeypatch.setattr(alert_sensors, "_GROUP_INTERVAL", timedelta(0))
    configured = Settings.model_validate({"alert_webhook_url": receiver.url, "alert_after_failures": 2})
    (sensor,) = alert_sensors.build_alert_sensors(configured, [])
    suffixes = iter(range(10_000))

    def ticked(cursor: str | None) -> str | None:
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        try:
            sensor(context)
        except AlertNotDelivered:
            return cursor
        return context.cursor

    @settings(max_examples=20)
    @example([("fail", "a"), ("succeed", "a")])
    @example([("fail", "a"), ("roll back", "b"), ("tick", "down"), ("fail", "a")])
    @example([("fail", "a"), ("fail", "a"), ("tick", "dies"), ("roll back", "a"), ("tick", "dies")])
    @given(steps)
    def check(history: list[tuple[str, str]]) -> None:
        suffix, cursor = next(suffixes), ticked(None)
        receiver.bodies.clear()
        streaks: dict[str, list[list[str]]] = {name: [[]] for name in "ab"}
        repeated: set[str] = set()
        rollbacks: list[str] = []
        for number, (what, who) in enumerate([*history, ("tick", "up"), ("tick", "up")]):
            tenant = f"{who}{suffix}"
            if what == "fail":
                streaks[who][-1].append(failed_run(instance, tenant, ["routing"]))
            elif what == "succeed":
                instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition=tenant))
                streaks[who].append([])
                time.sleep(0.002)  # the database rounds down when the next run was made
            elif what == "roll back":
                rollbacks.append(f"v2 -> v1: reason {number}")
                metadata = {"event": "rolled_back", "from": "v2", "to": "v1", "reason": f"reason {number}"}
                observation = dg.AssetObservation("routing", partition=tenant, metadata=metadata)
                instance.report_runless_asset_event(observation)
            else:
                receiver.status = 500 if who == "down" else 200
                after = ticked(cursor)
                if who == "up":
                    repeated |= {run for rows in streaks.values() for run in rows[-1][1::2]}
                cursor = cursor if who == "dies" else after

        told = [(alert["kind"], one) for alert in receiver.alerts for one in alert["affected"]]
        of_kind = {kind: [one["run_id"] for name, one in told if name == kind] for kind in Kind}
        for rows in streaks.values():
            runs = [run for row in rows for run in row]
            for row in filter(None, rows):
                assert set(runs[runs.index(row[0]) :]).intersection(of_kind[Kind.RUN_FAILED])
        # Of two in one message, which lists each module once, the later one stands for both.
        earlier = {run for rows in streaks.values() for row in rows for run in row[:-2]}
        assert repeated <= {*of_kind[Kind.FAILING_REPEATEDLY], *earlier}
        assert {one["detail"] for name, one in told if name == Kind.ROLLED_BACK} == {*rollbacks}
        if ("tick", "dies") not in history:
            counts = Counter((name, one["run_id"] or one["detail"]) for name, one in told)
            assert set(counts.values()) <= {1}
        messages = {json.dumps({**alert, "id": ""}) for alert in receiver.alerts}
        assert len({alert["id"] for alert in receiver.alerts}) == len(messages)

    check()


@pytest.mark.parametrize("url", ["hooks.slack.com/hidden", "ftp://x/hidden", "http://"])
def test_what_is_no_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(InvalidSettings, match="AUTOOPT_ALERT_SLACK_URL is no http") as e:
        receivers(Settings.model_validate({"alert_slack_url": url}))
    assert "hidden" not in str(e.value)


def test_the_command_says_what_came_back_from_each(receiver: Receiver) -> None:
    with alert_receiver() as slack:
        slack.status = 403
        urls = {"AUTOOPT_ALERT_WEBHOOK_URL": receiver.url, "AUTOOPT_ALERT_SLACK_URL": slack.url}
        said = autoopt("alerts", "test", status=2, env=urls)
        assert "delivered webhook answered HTTP 200" in said
        assert "not delivered slack answered HTTP 403 -> check AUTOOPT_ALERT_SLACK_URL" in said
        slack.status = 200
        result = json.loads(autoopt("alerts", "test", "--json", env=urls))
    assert result["id"] == receiver.alerts[-1]["id"]
    assert [(one["receiver"], one["status"], one["error"]) for one in result["receivers"]] == [
        ("webhook", 200, None),
        ("slack", 200, None),
    ]
    assert "no receiver of alerts is configured" in autoopt("alerts", "test", status=2)
