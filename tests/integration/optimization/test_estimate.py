"""What a run is expected to use of language models, and what it then uses: the factor between them is at most 1.5.

Recorded with the stand-in, where a local router won: calls 1.00 to 1.08 times, tokens 1.15 to 1.40 times what was used.
Without local routers: calls 0.82 to 1.02, tokens 1.06 times. A run that rejected all candidates on dev, and so
used no holdout: 1.49 and 1.39 times. With an endpoint whose answers do not depend on the instructions, so that searches
for them end early: calls 1.38 times.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.optimization.estimate import SEARCHES
from autoopt_pipeline.optimization.pipeline import estimate, optimize
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import Budget, LMPrice, LMSettings, QualityPolicy, with_field
from tests.support.llm_server import LLMServer
from tests.support.optimizing import CONFIG, decisions, job, stand_in

HONEST = 1.5


def off_by(expected: Mapping[str, float], report: Report, name: str) -> float:
    """The factor between what was expected and what was used, at least 1."""
    ratio = expected[name] / getattr(report, name)
    return max(ratio, 1 / ratio)


@pytest.mark.parametrize(
    ("count", "reviewed"),
    [(450, None), (300, 1.0), (1000, 0.05)],
    ids=["usual", "small and reviewed", "hardly reviewed"],
)
def test_a_search_uses_what_was_expected(count: int, reviewed: float | None, artifacts: VersionStore) -> None:
    habits = TrafficProfile() if reviewed is None else TrafficProfile(reviewed=reviewed)
    lm = metered_lm(LMSettings(model="stand-in", price=LMPrice(input=1, output=4)), Meter(20_000, 10**9))
    report = optimize(job(decisions(count, habits)), lm, artifacts)
    assert report.verdict in {Verdict.PROMOTED, Verdict.AWAITING_REVIEWS}
    for name in ("lm_calls", "lm_tokens", "lm_dollars"):
        assert off_by(report.estimate, report, name) <= HONEST


def test_without_local_routers_a_search_uses_what_was_expected(artifacts: VersionStore) -> None:
    report = optimize(job(decisions(450), CONFIG.model_copy(update={"local_router": False})), stand_in(), artifacts)
    for name in ("lm_calls", "lm_tokens"):
        assert off_by(report.estimate, report, name) <= HONEST


def test_searches_for_instructions_count(server: LLMServer, artifacts: VersionStore) -> None:
    given = job(decisions(300, TrafficProfile(reviewed=1.0)))
    lm = metered_lm(LMSettings(model="openai/test", api_base=server.url, answer_format="chat"), Meter(6000, 10**9))
    report = optimize(given, lm, artifacts)
    without, _ = estimate(given, stand_in(), artifacts)
    assert off_by(report.estimate, report, "lm_calls") <= HONEST
    assert report.estimate["lm_calls"] > without.lm_calls
    assert "lm_dollars" not in report.estimate  # nobody knows the price


def test_an_estimate_asks_nobody_and_is_the_runs_own(artifacts: VersionStore) -> None:
    given, lm = job(decisions(450)), stand_in()
    expected, purpose = estimate(given, lm, artifacts)
    assert (lm.meter.calls, artifacts.versions(), purpose) == (0, [], SEARCHES)
    assert optimize(given, lm, artifacts).estimate == expected.known


def test_a_budget_limits_the_estimate(artifacts: VersionStore) -> None:
    config = CONFIG.model_copy(update={"budget": Budget(max_lm_calls=500)})
    expected, _ = estimate(job(decisions(450), config), stand_in(), artifacts)
    assert expected.lm_calls == pytest.approx(500)


def test_what_is_asked_again_counts(artifacts: VersionStore) -> None:
    quality = QualityPolicy(replay_calls=60)
    given = job(decisions(450), CONFIG.model_copy(update={"quality": quality}))
    plain, again = (estimate(each, stand_in(), artifacts)[0] for each in (job(decisions(450)), given))
    assert again.lm_calls - plain.lm_calls == pytest.approx(48)
    assert again.lm_tokens > plain.lm_tokens


def test_a_run_without_a_search_is_told_as_that(artifacts: VersionStore) -> None:
    few, purpose = estimate(job(decisions(30)), stand_in(), artifacts)
    assert (few.lm_calls, few.lm_tokens) == (0, 0)
    assert purpose.startswith("not_enough_data: ")

    given = job(decisions(1000, TrafficProfile(reviewed=0.05)))
    assert optimize(given, stand_in(20_000), artifacts).verdict is Verdict.AWAITING_REVIEWS
    reviewed, purpose = estimate(given, lm := stand_in(), artifacts)
    assert (reviewed.lm_calls, lm.meter.calls) == (0, 0)
    assert "goes on with the reviews so far" in purpose


def test_beside_a_canary_nothing_is_searched_for_unless_the_module_is_to_be_retrained(artifacts: VersionStore) -> None:
    live = with_field(CONFIG, "evidence", "live")
    unreviewed = decisions(600, TrafficProfile(reviewed=0.0, complains=0.0))
    assert optimize(job(unreviewed, live), stand_in(), artifacts).verdict is Verdict.CANARY
    waiting, purpose = estimate(job(unreviewed, live), stand_in(), artifacts)
    assert (waiting.lm_calls, "becomes active if" in purpose) == (0, True)

    anew = with_field(live, "modules.routing.retrain_after", datetime.now(UTC).isoformat())
    searching, purpose = estimate(job(unreviewed, anew), stand_in(), artifacts)
    assert searching.lm_calls > 0
    assert purpose == SEARCHES
