"""What is worth a message, told once; and what becomes of messages that nobody takes."""

import hashlib
import hmac
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import AlertNotDelivered, InvalidSettings
from autoopt_pipeline.monitoring.alerts import delivery
from autoopt_pipeline.monitoring.alerts import outbox as outbox_module
from autoopt_pipeline.monitoring.alerts.delivery import receivers, send
from autoopt_pipeline.monitoring.alerts.failure_rules import GROUP_INTERVAL, MAX_CAUSES
from autoopt_pipeline.monitoring.alerts.formats import slack_body
from autoopt_pipeline.monitoring.alerts.models import MAX_AFFECTED, Affected, Alert, Kind, make_alert
from autoopt_pipeline.monitoring.alerts.outbox import GIVE_UP_AFTER, MAX_KEPT, Outbox, deliver
from autoopt_pipeline.monitoring.alerts.rules import Memory, tell
from autoopt_pipeline.run_history.events import Event, ModuleFailed, ModuleSucceeded, RolledBack, Ticked
from autoopt_pipeline.settings import Settings
from tests.support.alert_receiver import Receiver, alert_receiver
from tests.support.command_line import autoopt

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LM_DOWN = "language model openai/x: timed out after 30 s -> check AUTOOPT_LM_API_BASE"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with alert_receiver() as listening:
        yield listening


def failed(tenant: str, minute: float, cause: str = LM_DOWN, module: str = "routing") -> ModuleFailed:
    return ModuleFailed(NOON + minute * MINUTE, tenant, module, f"run-{tenant}-{minute}", cause)


def succeeded(tenant: str, minute: float, module: str = "routing") -> ModuleSucceeded:
    return ModuleSucceeded(NOON + minute * MINUTE, tenant, module)


def looks(*batches: Sequence[Event], every: timedelta = MINUTE, after: int = 3) -> list[Alert]:
    """What is told when these happen between one look and the next, and then nothing for two hours."""
    memory, told, now = Memory(), list[Alert](), NOON
    for batch in (*batches, [], []):
        now = max([now, *(event.at for event in batch)])
        memory, alerts = tell(Memory.model_validate_json(memory.model_dump_json()), batch, now=now, after=after)
        told += alerts
        now += every if batch else GROUP_INTERVAL
    return told


def kinds(alerts: Sequence[Alert]) -> list[tuple[str, int]]:
    return [(alert.kind.value, alert.affected_total) for alert in alerts]


def test_a_thousand_tenants_that_fail_for_one_cause_are_one_message_that_lists_some() -> None:
    (alert,) = looks([failed(f"tenant-{n}", 0, LM_DOWN.replace("30", str(n))) for n in range(1000)])
    assert alert.kind is Kind.RUN_FAILED
    assert alert.summary == "tenant-0/routing and 999 more failed"
    assert len(alert.affected) == MAX_AFFECTED
    assert len(alert.model_dump_json()) < 20_000


def test_causes_that_name_whom_they_hit_are_one_cause() -> None:
    told = looks([failed(t, 0, f"tenant {t} has no project {t}-cogniverse-routing -> send") for t in ("a", "org:b")])
    assert kinds(told) == [("run_failed", 2)]


def test_many_causes_at_once_share_the_last_message() -> None:
    told = looks([failed(f"t{n}", 0, f"cause {chr(97 + n)}") for n in range(20)])
    assert [alert.affected_total for alert in told] == [1] * MAX_CAUSES + [20 - MAX_CAUSES]


def test_the_first_failure_is_told_at_once_and_those_that_follow_together() -> None:
    told = looks([failed("a", 0)], [failed("b", 1)], [failed("c", 2), failed("a", 2)])
    assert kinds(told) == [("run_failed", 1), ("run_failed", 2)]


def test_the_same_failure_is_told_again_after_a_day_and_another_one_at_once() -> None:
    day = 24 * 60
    told = looks(
        [failed("a", 0)], [failed("a", day - 1)], [failed("a", day)], [failed("a", day + 1, "bad key")], after=9
    )
    assert kinds(told) == [("run_failed", 1)] * 3
    assert [alert.detail for alert in told] == [LM_DOWN, LM_DOWN, "bad key"]


def test_a_module_that_keeps_failing_is_named_once_and_when_it_works_again() -> None:
    told = looks(
        *([failed("a", n)] for n in range(5)),
        [succeeded("a", 5)],
        [succeeded("a", 6)],
    )
    assert kinds(told) == [("run_failed", 1), ("failing_repeatedly", 1), ("recovered", 1)]
    assert told[1].affected[0].detail.startswith("3 in a row: language model")


def test_a_module_that_works_does_not_hide_that_another_of_the_tenant_keeps_failing() -> None:
    events = [[failed("a", n), succeeded("a", n, "modality")] for n in range(3)]
    assert ("failing_repeatedly", 1) in kinds(looks(*events))


histories = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["up", "bad key", "timed out"]), st.booleans()), max_size=40
)


@given(histories, st.integers(1, 4))
def test_no_failure_is_lost_and_none_told_twice(history: list[tuple[str, str, bool]], after: int) -> None:
    """However looks divide it: a failure that differs from the one before is told once, and so is each row."""
    batches: list[list[Event]] = [[]]
    expected: Counter[str] = Counter()
    rows: dict[str, list[str]] = {}
    for minute, (tenant, what, look) in enumerate(history):
        row = rows.setdefault(tenant, [])
        if what == "up":
            batches[-1].append(succeeded(tenant, minute))
            expected["recovered"] += len(row) >= after
            row.clear()
        else:
            batches[-1].append(failed(tenant, minute, what))
            expected["run_failed"] += not row or row[-1] != what
            row.append(what)
            expected["failing_repeatedly"] += len(row) == after
        if look:
            batches.append([])
    told: Counter[str] = Counter()
    for alert in looks(*batches, after=after):
        told[alert.kind.value] += alert.affected_total
    assert +told == +expected


def test_a_service_is_reported_after_some_looks_in_a_row_and_when_it_is_back() -> None:
    def look(minute: int, service: str | None, sensor: str = "s") -> list[Event]:
        return [Ticked(NOON + minute * MINUTE, sensor, service, "down")]

    assert looks(look(0, "Phoenix"), look(1, "Phoenix"), look(2, None), look(3, "Phoenix")) == []
    told = looks(*(look(n, "Phoenix") for n in range(9)), look(9, None), look(10, None))
    assert [alert.kind for alert in told] == [Kind.UNREACHABLE, Kind.REACHABLE]
    assert "3 looks in a row, since 2026-01-01 12:00:00 UTC" in told[0].summary
    assert len(looks(*(look(n * 60, "Phoenix") for n in range(27)))) == 2  # again after a day


def test_a_look_that_did_not_ask_the_service_gives_no_all_clear() -> None:
    down = [[Ticked(NOON + n * MINUTE, "s", "Phoenix", "down")] for n in range(3)]
    idle = [Ticked(NOON + 4 * MINUTE, "s", works=frozenset({"the store"}))]
    assert [alert.kind for alert in looks(*down, idle)] == [Kind.UNREACHABLE]
    other = [Ticked(NOON + 5 * MINUTE, "s", "sensor s", "odd", frozenset())]
    assert [alert.kind for alert in looks(*down, idle, other)] == [Kind.UNREACHABLE]


sensor_looks = st.lists(st.tuples(st.sampled_from("st"), st.sampled_from([None, "Phoenix", "store"])), max_size=40)


@given(sensor_looks, st.integers(1, 3))
def test_bad_news_and_all_clear_of_a_service_take_turns(history: list[tuple[str, str | None]], after: int) -> None:
    ticks = [
        [Ticked(NOON + n * MINUTE, sensor, service, "x", frozenset() if service else None)]
        for n, (sensor, service) in enumerate(history)
    ]
    told = looks(*ticks, *([Ticked(NOON + timedelta(hours=2), sensor)] for sensor in "st"), after=after)
    for service in ("Phoenix", "store"):
        about = [alert.kind for alert in told if alert.summary.startswith(service)]
        assert about == [Kind.UNREACHABLE, Kind.REACHABLE] * (len(about) // 2)
    rows = {
        service
        for service in ("Phoenix", "store")
        for sensor in "st"
        if f"|{service}" * after in "".join(f"|{s}" for name, s in history if name == sensor)
    }
    assert {alert.summary.split()[0] for alert in told} == rows


def test_rollbacks_of_one_module_are_one_message() -> None:
    back = [RolledBack(NOON, tenant, module, "v2 -> v1: worse") for tenant in "ab" for module in ("routing", "unified")]
    assert kinds(looks(back)) == [("rolled_back", 2), ("rolled_back", 2)]


def test_what_tenants_write_makes_no_link_in_slack_and_calls_nobody() -> None:
    about = Affected(tenant="a", module="routing", detail="<!channel> & co", url="http://ui/runs/1")
    alert = make_alert(Kind.RUN_FAILED, NOON, "a\nfailed", detail="<http://evil|click> " + "x" * 9000, affected=[about])
    text = json.loads(slack_body(alert))["text"]
    assert "<http://ui/runs/1|a/routing>: &lt;!channel&gt; &amp; co" in text
    assert "&lt;http://evil|click&gt;" in text
    assert len(text) < 1000


def waiting(number: int, at: datetime = NOON) -> Outbox:
    return Outbox().put(make_alert(Kind.TEST, at, f"alert {n}") for n in range(number))


def refuse(alert: Alert) -> None:
    raise AlertNotDelivered("webhook does not answer", "check it")


def test_a_receiver_that_is_down_is_tried_ever_less_often_until_its_alerts_are_given_up() -> None:
    outbox, tries, now = waiting(2), 0, NOON
    while not outbox.given_up(now):
        outbox, error = deliver(outbox, refuse, now=now)
        tries += error is not None
        now += MINUTE
    assert now - NOON == GIVE_UP_AFTER
    assert 90 < tries < 110
    assert outbox.without(outbox.given_up(now)).waiting == ()


def test_a_receiver_that_is_back_gets_everything_in_order() -> None:
    arrived: list[str] = []
    outbox, error = deliver(waiting(25), refuse, now=NOON)
    assert error is not None
    assert deliver(outbox, refuse, now=NOON) == (outbox, None)  # not yet
    outbox, error = deliver(outbox, lambda a: arrived.append(a.summary), now=NOON + MINUTE)
    assert error is None
    assert arrived == [f"alert {n}" for n in range(25)]
    assert outbox == Outbox()


def test_a_receiver_that_takes_its_time_does_not_take_that_of_the_look(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(outbox_module, "monotonic", lambda: next(clock))  # each alert takes four seconds
    left, error = deliver(waiting(25), lambda a: None, now=NOON)
    assert (len(left.waiting), left.next_try, error) == (23, None, None)


def test_a_receiver_that_stays_away_does_not_let_alerts_pile_up() -> None:
    many = waiting(MAX_KEPT + 5)
    assert [alert.summary for alert in many.given_up(NOON)] == [f"alert {n}" for n in range(5)]


def test_the_webhook_gets_signed_json(receiver: Receiver) -> None:
    settings = Settings.model_validate({"alert_webhook_url": receiver.url, "alert_webhook_secret": "s3cret"})
    alert = make_alert(Kind.TEST, NOON, "hello")
    assert send(receivers(settings)[0], alert) == 200
    expected = hmac.new(b"s3cret", receiver.bodies[0], hashlib.sha256).hexdigest()
    assert receiver.headers[0]["x-autoopt-signature"] == f"sha256={expected}"
    assert Alert.model_validate_json(receiver.bodies[0]) == alert


@pytest.mark.parametrize(
    ("status", "silence", "asked", "said"),
    [
        (500, 0.0, 3, "slack answered HTTP 500"),
        (429, 0.0, 3, "slack answered HTTP 429"),
        (403, 0.0, 1, "slack answered HTTP 403"),
        (302, 0.0, 1, "slack answered HTTP 302"),
        (200, 2.0, 1, "slack does not answer (ReadTimeout)"),
    ],
)
def test_trouble_of_a_receiver_is_said_without_its_address(
    receiver: Receiver,
    status: int,
    silence: float,
    asked: int,
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
    assert receiver.asked == asked
    assert "hidden" not in str(e.value) + caplog.text + repr(slack)
    assert e.value.__cause__ is None
    assert e.value.__suppress_context__ or e.value.__context__ is None


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
    assert "nobody is told of anything" in autoopt("alerts", "test", status=2)
