"""The past of a tenant's routing in memory: what was decided and reviewed on three days, and a backtest of it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.modules.spec import LoggedDecision
from autoopt_pipeline.optimization.backtest import NIGHT, Allowance, Scenario, nights_until, play_all
from autoopt_pipeline.registry.backtests import Night
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified, with_field
from autoopt_pipeline.traces.client import Project
from autoopt_pipeline.traces.past import PastTraces
from autoopt_pipeline.traces.reader import Spans
from tests.support.optimizing import CONFIG, END, ROUTING, decisions

NIGHTS = nights_until(END, 3)
SHORT_PROMPTS = with_field(with_field(CONFIG, "dspy_max_bootstrapped_demos", "0"), "dspy_max_labeled_demos", "8")


def reviewed_stream() -> list[LoggedDecision]:
    """Three days of decisions, each with its review a minute later."""
    given = decisions(950, TrafficProfile(reviewed=1.0))
    first = NIGHTS[0] - NIGHT
    spread = [replace(each, time=first + (END - first) * (number / len(given))) for number, each in enumerate(given)]
    return [reviewed_at(each, each.time + timedelta(minutes=1)) for each in spread]


def reviewed_at(decision: LoggedDecision, moment: datetime) -> LoggedDecision:
    return replace(decision, annotations=tuple(replace(each, updated_at=moment) for each in decision.annotations))


def played(scenario: Scenario, nights: Sequence[datetime] = NIGHTS) -> tuple[Night, ...]:
    (found,), ended = play_all([scenario], nights, Allowance(10**6))
    assert ended == ""
    return found["routing"].nights


def made_scenario(
    stream: Sequence[LoggedDecision], folder: Path, config: RoutingConfigUnified = SHORT_PROMPTS
) -> Scenario:
    project = Project("P", "acme", NIGHTS[0] - NIGHT, END, {ROUTING.contract.annotation: 0})
    past = {"routing": PastTraces(ROUTING, project, Spans(stream, {}))}
    return Scenario(config, past, ObjectStore(str(folder)), Settings(lm="stand-in", settling_seconds=0))
