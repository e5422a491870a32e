"""Phoenix that answers badly, in front of the real one."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, send_sample_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.errors import PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.reader import collect
from tests.chaos import faults
from tests.chaos.faults import Answer, Fault, Proxy, proxy
from tests.chaos.invariants import check_all, outcomes
from tests.chaos.world import World

BAD = {
    "500": faults.fails,
    "html": faults.answers_html,
    "truncated": faults.cuts_short,
    "empty": faults.answers_nothing,
    "hung-up": faults.hangs_up,
    "slow": faults.slow(3),
    "ten-times-as-many": faults.miscounts(3000),
    "far-too-many": faults.miscounts(10**9),
}
WINDOW = timedelta(hours=1)


@pytest.fixture(scope="module")
def end(phoenix: Phoenix) -> datetime:
    end = datetime.now(UTC)
    tenant = replace(SAMPLE_TENANTS[0], tenant_id="faulty", habits=TrafficProfile())
    send_sample_traffic(phoenix, tenant, 300, start=end - WINDOW, end=end, seed=1)
    return end


@pytest.fixture
def before(phoenix: Phoenix) -> Iterator[Proxy]:
    with proxy(phoenix.endpoint) as started:
        yield started


@pytest.mark.parametrize("how", BAD)
def test_a_read_that_goes_wrong_is_an_error_and_never_fewer_traces(before: Proxy, end: datetime, how: str) -> None:
    bad = Phoenix(before.url, timeout_seconds=1)
    with before.failing(BAD[how]), pytest.raises((PhoenixUnavailable, PhoenixRefused), match=before.url):
        collect(bad, "faulty", get_module("routing"), start=end - WINDOW, end=end)
    collected = collect(bad, "faulty", get_module("routing"), start=end - WINDOW, end=end)
    assert len(collected.decisions) == 300


def test_an_answer_without_its_rows_is_an_error(before: Proxy, end: datetime) -> None:
    def emptied(ask: Callable[[], Answer]) -> Answer:
        return Answer(200, {"content-type": "application/json"}, b'{"data": []}')

    with before.failing(emptied, path="/spans"), pytest.raises(PhoenixUnavailable, match="300 spans are counted and 0"):
        collect(Phoenix(before.url), "faulty", get_module("routing"), start=end - WINDOW, end=end)


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["500", "truncated", "slow"])
def test_while_phoenix_answers_badly_somebody_says_so_and_afterwards_all_goes_on(deployment: World, how: str) -> None:
    known = deployment.troubles()
    before = len(outcomes(deployment, "alpha", "modality"))
    fault: Fault = faults.slow(6) if how == "slow" else BAD[how]
    with deployment.proxy.failing(fault):
        deployment.feed("alpha")
        deployment.wait_for_trouble("Phoenix http", known=known)
        assert len(outcomes(deployment, "alpha", "modality")) == before
    deployment.settle()
    assert len(outcomes(deployment, "alpha", "modality")) == before + 1
    check_all(deployment)


@pytest.mark.chaos
def test_phoenix_is_killed_while_a_run_reads_from_it(deployment: World) -> None:
    before = len(outcomes(deployment, "beta", "modality"))
    deployment.feed("beta")
    deployment.wait_for_run()
    assert deployment.kill("phoenix")
    deployment.settle()
    assert len(outcomes(deployment, "beta", "modality")) == before + 1
    check_all(deployment)
