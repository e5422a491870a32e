"""Metrics as Prometheus reads them, of a real Dagster instance."""

import signal
import subprocess
from datetime import timedelta
from pathlib import Path

import dagster as dg
import httpx
import pytest

from autoopt_pipeline.devtools.processes import LOOPBACK, free_port
from autoopt_pipeline.errors import LMUnavailable
from autoopt_pipeline.monitoring import prometheus
from autoopt_pipeline.orchestration.step_errors import translate_errors
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.tenants.config import Retry
from tests.support.command_line import AUTOOPT
from tests.support.scraped_metrics import exporter, parsed, scraped
from tests.support.tenant_history import failed_run, lost_run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "EVENT_LOG_LAG", timedelta(0))
    monkeypatch.setattr(prometheus, "_CACHED_SECONDS", 0)


def spend(instance: dg.DagsterInstance, tenant: str, calls: int, *, verdict: str | None = "promoted") -> None:
    """An outcome, or with no verdict an attempt that failed after it had spent."""
    metadata = {"lm_calls": calls, "lm_tokens": 10 * calls, "lm_dollars": 0.5 * calls}
    if verdict:
        event = dg.AssetMaterialization("routing", partition=tenant, metadata={**metadata, "verdict": verdict})
        instance.report_runless_asset_event(event)
    else:
        event = dg.AssetObservation("routing", partition=tenant, metadata={**metadata, "event": "spent"})
        instance.report_runless_asset_event(event)


def test_what_happens_is_counted_from_the_start_of_the_exporter(instance: dg.DagsterInstance, at_once: None) -> None:
    spend(instance, "before", 1)
    source = exporter(instance)
    assert ("autoopt_lm_calls_total", "before") not in scraped(source)
    spend(instance, "acme", 7)
    spend(instance, "acme", 3, verdict="rejected")
    spend(instance, "acme", 2, verdict=None)
    rolled_back = dg.AssetObservation("routing", partition="acme", metadata={"event": "rolled_back", "reason": "worse"})
    instance.report_runless_asset_event(rolled_back)
    first = scraped(source)
    assert first["autoopt_lm_calls_total", "acme"] == 12
    assert first["autoopt_lm_tokens_total", "acme"] == 120
    assert first["autoopt_lm_dollars_total", "acme"] == 6
    assert first["autoopt_verdicts_total", "routing", "promoted"] == 1
    assert first["autoopt_verdicts_total", "routing", "rejected"] == 1
    assert first["autoopt_rollbacks_total", "routing"] == 1
    spend(instance, "acme", 1)
    then = scraped(source)
    assert then["autoopt_lm_calls_total", "acme"] == 13
    counters = {key for key in first if key[0].endswith("_total")}
    assert all(then[key] >= first[key] for key in counters)


def decide(instance: dg.DagsterInstance, tenant: str, verdict: str, **costs: tuple[float, float | None]) -> None:
    """An outcome with what a decision of each program costs: tokens and dollars."""
    measured = {
        program: ProgramCost(
            decisions=9,
            lm_calls=1,
            input_tokens=tokens,
            output_tokens=0,
            cached_tokens=0,
            dollars=dollars,
            timed=9,
            seconds_p50=0.5,
            seconds_p95=1.5,
        ).model_dump()
        for program, (tokens, dollars) in costs.items()
    }
    metadata = {"verdict": verdict, **({"costs": measured} if measured else {})}
    instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition=tenant, metadata=metadata))


def test_the_cost_of_a_decision_is_that_of_the_program_that_serves(instance: dg.DagsterInstance, at_once: None) -> None:
    decide(instance, "acme", "rejected", incumbent=(300, 0.01), candidate=(900, 0.03))
    decide(instance, "beta", "promoted", incumbent=(300, None), candidate=(900, None))
    source = exporter(instance)  # it shows what earlier runs measured
    shown = {key: value for key, value in scraped(source).items() if key[0].startswith("autoopt_decision_")}
    assert shown == {
        ("autoopt_decision_tokens", "routing", "acme"): 300,
        ("autoopt_decision_dollars", "routing", "acme"): 0.01,
        ("autoopt_decision_seconds_p95", "routing", "acme"): 1.5,
        ("autoopt_decision_tokens", "routing", "beta"): 900,
        ("autoopt_decision_seconds_p95", "routing", "beta"): 1.5,
    }
    decide(instance, "acme", "promoted", incumbent=(300, 0.01), candidate=(800, None))
    decide(instance, "acme", "not_enough_data")
    then = scraped(source)
    assert then["autoopt_decision_tokens", "routing", "acme"] == 800
    assert ("autoopt_decision_dollars", "routing", "acme") not in then
    rolled_back = dg.AssetObservation("routing", partition="acme", metadata={"event": "rolled_back", "reason": "worse"})
    instance.report_runless_asset_event(rolled_back)
    assert ("autoopt_decision_tokens", "routing", "acme") not in scraped(source)


def test_runs_that_failed_are_timed_and_those_in_a_row_shown(instance: dg.DagsterInstance, at_once: None) -> None:
    source = exporter(instance)

    @dg.asset(name="routing")
    def works() -> None: ...

    for _ in range(2):
        failed_run(instance, "acme", ["routing", "modality"])
    dg.Definitions([works]).resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, tags={"dagster/partition": "beta"}, asset_selection=[dg.AssetKey("routing")]
    )
    shown = scraped(source)
    assert shown["autoopt_run_duration_seconds_count", "success"] == 1
    assert shown["autoopt_consecutive_failures", "routing", "acme"] == 2
    assert shown["autoopt_failing_modules",] == 2
    instance.report_runless_asset_event(dg.AssetMaterialization("routing", partition="acme"))
    then = scraped(source)
    assert ("autoopt_consecutive_failures", "routing", "acme") not in then
    assert then["autoopt_failing_modules",] == 1


@dg.asset(name="routing")
def lm_is_down(context: dg.AssetExecutionContext) -> None:
    with translate_errors(context, Retry(max_retries=0)):
        raise LMUnavailable("the model does not answer", "check it")


@dg.asset(name="modality")
def has_a_bug(context: dg.AssetExecutionContext) -> None:
    with translate_errors(context, Retry(max_retries=0)):
        raise KeyError("x")


def test_failed_runs_are_counted_by_the_first_module_and_its_error(instance: dg.DagsterInstance, at_once: None) -> None:
    source = exporter(instance)
    job = dg.Definitions([lm_is_down, has_a_bug]).resolve_implicit_global_asset_job_def()
    for module in ("routing", "routing", "modality"):
        job.execute_in_process(
            instance=instance,
            tags={"dagster/partition": "acme"},
            asset_selection=[dg.AssetKey(module)],
            raise_on_error=False,
        )
    lost_run(instance, "acme", ["modality"])
    shown = {key[1:]: value for key, value in scraped(source).items() if key[0] == "autoopt_run_failures_total"}
    assert shown == {("LMUnavailable", "routing"): 2, ("unexpected", "modality"): 1, ("lost", "run"): 1}


def test_tenants_beyond_the_highest_number_share_a_label(instance: dg.DagsterInstance, at_once: None) -> None:
    source = exporter(instance, max_tenants=2)
    for tenant in ("a", "b", "c", "d", "a"):
        spend(instance, tenant, 1)
        failed_run(instance, tenant, ["modality"])
    shown = scraped(source)
    calls = {key[1]: value for key, value in shown.items() if key[0] == "autoopt_lm_calls_total"}
    assert calls == {"a": 2, "b": 1, "_other": 2}
    assert {key[2] for key in shown if key[0] == "autoopt_consecutive_failures"} == {"a", "b"}
    assert shown["autoopt_failing_modules",] == 4


def test_what_many_ask_is_read_once(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "EVENT_LOG_LAG", timedelta(0))
    source = exporter(instance)
    scraped(source)
    spend(instance, "acme", 1)
    assert ("autoopt_lm_calls_total", "acme") not in scraped(source)


def test_the_command_serves_them_until_it_is_stopped(home: Path) -> None:
    port = free_port()
    command = [AUTOOPT, "metrics", "--port", str(port)]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            assert server.stdout.readline() == f"metrics at http://127.0.0.1:{port}/metrics, until Ctrl-C\n"
            answer = httpx.get(f"http://{LOOPBACK}:{port}/metrics", timeout=30)
            assert answer.status_code == 200
            assert parsed(answer.text)["autoopt_failing_modules",] == 0
            taken = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
            assert taken.returncode == 2
            assert taken.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}")
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 130
