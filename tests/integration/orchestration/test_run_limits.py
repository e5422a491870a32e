"""What bounds a run, on real parts: overrides, budgets of a day, retries, overlap with another run, retention."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.sensors.retention import Sweep, build_retention_sensor, delete_old_runs
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.run_history.lm_usage import read_usage, report_usage
from autoopt_pipeline.scheduling.budgets import LMUsage
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix
from tests.support.llm_server import LLMServer, llm_server
from tests.support.materializing import failure_of, metadata_of

BOUND = replace(SAMPLE_TENANTS[0], tenant_id="bound", modules=("routing",))
ROUTING = dg.AssetKey("routing")
TODAY = timedelta(days=1)


@pytest.fixture(scope="module")
def traffic(phoenix: Phoenix) -> None:
    end = datetime.now(UTC)
    send_sample_traffic(phoenix, BOUND, BOUND.traces, start=end - timedelta(hours=3), end=end, seed=1)


@pytest.fixture
def configure(configured: Path) -> Callable[..., None]:
    def write(**fields: object) -> None:
        config = RoutingConfigUnified.model_validate({**sample_config(BOUND).model_dump(), **fields})
        write_config(open_config_store(f"sqlite:///{configured / '.autoopt' / 'config.db'}"), config)

    return write


@pytest.fixture
def llm() -> Iterator[LLMServer]:
    with llm_server() as server:
        yield server


def run(instance: dg.DagsterInstance, **overrides: object) -> dg.ExecuteInProcessResult:
    register_tenant(instance, BOUND.tenant_id)
    return dg.materialize(
        build_module_assets(),
        selection=["routing"],
        partition_key=BOUND.tenant_id,
        instance=instance,
        resources={"services": Services()},
        raise_on_error=False,
        run_config={"ops": {"routing": {"config": overrides}}},
    )


def tries(result: dg.ExecuteInProcessResult) -> int:
    return 1 + len(result.filter_events(lambda event: event.event_type is dg.DagsterEventType.STEP_UP_FOR_RETRY))


def spent_by_failures(instance: dg.DagsterInstance) -> list[dict]:
    records = instance.fetch_observations(ROUTING, limit=10).records
    return [
        {name: value.value for name, value in record.asset_observation.metadata.items()}
        for record in records
        if record.asset_observation
    ]


def test_a_run_can_be_told_its_optimizer_and_budget_and_says_so(
    traffic: None, configure: Callable[..., None], instance: dg.DagsterInstance
) -> None:
    configure()
    result = run(instance, optimizer="coverage", budget={"max_lm_calls": 2000})
    assert result.success
    metadata = metadata_of(result, "routing")
    assert metadata["overrides"] == {"optimizer": "coverage", "budget": {"max_lm_calls": 2000}}
    assert metadata["optimizer"].startswith("coverage-")
    assert "bootstrap" not in metadata["report"]
    assert "gepa" not in metadata["report"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimizer": "gpea"}, "unknown optimizer 'gpea' -> did you mean 'gepa'?"),
        ({"optimizer": "miprov2"}, "optimizer miprov2 cannot be tried with"),
        ({"budget": {"max_lm_calls": 0}}, "budget.max_lm_calls: has to be 1 or more"),
        ({"budget": {"max_lm_calls": 100}}, "the budget does not pay for a comparison: budget.max_lm_calls is 100"),
        ({"lm": {"model": "x", "api_key_env": "sk-secret"}}, "lm.api_key_env: give the name of an environment"),
    ],
)
def test_an_override_that_cannot_be_fails_the_run_with_one_line(
    traffic: None, configure: Callable[..., None], instance: dg.DagsterInstance, overrides: dict, words: str
) -> None:
    configure()
    message = failure_of(run(instance, **overrides))
    assert words in message
    assert "\n" not in message
    assert "sk-secret" not in message


def test_a_day_whose_budget_is_spent_ends_runs_by_hand_too_unless_forced(
    traffic: None, configure: Callable[..., None], instance: dg.DagsterInstance
) -> None:
    configure(daily_budget={"max_lm_calls": 1000})
    report_usage(instance, BOUND.tenant_id, "modality", LMUsage(900, 0), run_id="r", reason="the model is down")
    assert "what is left of the day's budget decides nothing" in failure_of(run(instance))
    report_usage(instance, BOUND.tenant_id, "modality", LMUsage(200, 0), run_id="r", reason="the model is down")
    assert "1100 of 1000 LM calls a day are spent" in failure_of(run(instance))
    forced = run(instance, force=True, optimizer="coverage")
    assert forced.success
    spent = read_usage(instance, ["modality", "routing"], since=datetime.now(UTC) - TODAY)
    assert spent[BOUND.tenant_id].lm_calls == 1100 + metadata_of(forced, "routing")["lm_calls"]


def test_a_run_stays_within_what_the_day_leaves(
    traffic: None, configure: Callable[..., None], instance: dg.DagsterInstance
) -> None:
    configure(daily_budget={"max_lm_calls": 700})
    result = run(instance)
    assert result.success
    assert metadata_of(result, "routing")["lm_calls"] <= 700
    assert "the budget ended the search" in metadata_of(result, "routing")["report"]


def test_what_an_outage_in_the_middle_of_a_search_had_cost_is_entered_and_it_is_not_tried_again(
    traffic: None, configure: Callable[..., None], instance: dg.DagsterInstance, llm: LLMServer
) -> None:
    configure(lm={"model": "openai/x", "api_base": llm.url}, retry={"max_retries": 3, "delay_seconds": 0})
    llm.trouble, llm.always = [None] * 100, 401
    result = run(instance)
    assert "LMAuthError" in failure_of(result)
    assert tries(result) == 1
    (spent,) = spent_by_failures(instance)
    assert (spent["event"], spent["run_id"]) == ("spent", result.run_id)
    assert spent["lm_calls"] > 100
    assert spent["lm_tokens"] > 1000  # those under way at the end may be missing
    assert "LMAuthError" in spent["reason"]


@pytest.mark.parametrize("most", [0, 2])
def test_a_step_is_tried_again_as_often_as_its_tenant_says_while_phoenix_is_down(
    configure: Callable[..., None], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    configure(retry={"max_retries": most, "delay_seconds": 0})
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", "http://127.0.0.1:9")
    result = run(instance)
    assert tries(result) == 1 + most
    assert "http://127.0.0.1:9" in failure_of(result)


def test_what_will_not_pass_by_itself_is_not_tried_again(
    configure: Callable[..., None], instance: dg.DagsterInstance
) -> None:
    configure(agents=[], retry={"max_retries": 3, "delay_seconds": 0})
    assert tries(run(instance)) == 1


def test_a_second_run_of_a_tenant_is_refused_and_a_stopped_one_leaves_nothing_half_written(
    traffic: None, configured: Path, configure: Callable[..., None], llm: LLMServer
) -> None:
    configure(lm={"model": "openai/x", "api_base": llm.url})
    llm.trouble = [None] * 70 + [3.0] * 400  # the incumbent is judged, then answers take their time
    command = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "--select", "routing"]
    command += ["--partition", BOUND.tenant_id, "-m", "autoopt_pipeline.definitions"]
    with dg.DagsterInstance.from_config(str(configured)) as instance:
        register_tenant(instance, BOUND.tenant_id)
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while llm.calls < 72:
                assert time.monotonic() < deadline, "the first run asked nothing"
                time.sleep(0.2)
            (running,) = instance.get_run_ids()
            second = subprocess.run(command, capture_output=True, text=True, check=False)
            assert second.returncode == 0  # it leaves the module to the other, and has not failed
            (other,) = set(instance.get_run_ids()) - {running}
            assert "began earlier and has not ended" in str(instance.all_logs(other))  # test_overlaps.py reads the line
            assert first.poll() is None
        finally:
            first.terminate()
            first.wait()
        (spent,) = spent_by_failures(instance)
        assert (spent["run_id"], spent["reason"]) == (running, "the run was stopped")
        assert spent["lm_calls"] >= 70
        assert "its process was told to stop" in causes_of(instance, running)["routing"]
        assert instance.event_log_storage.get_concurrency_info("lm").claimed_slots == []
    # Nothing but the answers that the next try is given.
    left = [path for path in (configured / ".autoopt").glob("artifacts/**/*") if path.is_file()]
    assert {path.parent.name for path in left} == {"answers"}


@dg.asset(name="routing", partitions_def=dg.DynamicPartitionsDefinition(name="tenants"))
def optimized(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    if context.run.tags.get("broken"):
        raise dg.Failure("broken")
    return dg.MaterializeResult(metadata={"lm_calls": 1})


@dg.job
def somebody_elses() -> None:
    dg.op(name="nothing")(lambda: None)()


@pytest.fixture
def runs(instance: dg.DagsterInstance) -> Callable[..., str]:
    """Real runs of a stand-in for a module."""
    job = dg.Definitions(assets=[optimized]).resolve_implicit_global_asset_job_def()

    def execute(tenant: str, **tags: str) -> str:
        register_tenant(instance, tenant)
        return job.execute_in_process(
            partition_key=tenant, instance=instance, asset_selection=[ROUTING], tags=tags, raise_on_error=False
        ).run_id

    return execute


def test_old_runs_are_deleted_but_never_the_newest_outcome_nor_a_failure_that_counts(
    instance: dg.DagsterInstance, runs: Callable[..., str]
) -> None:
    old_failure = runs("acme", broken="yes")
    before = datetime.now(UTC)
    old = [runs(tenant) for _ in range(3) for tenant in ("acme", "globex")]
    recent_failure = runs("acme", broken="yes")
    others_run = somebody_elses.execute_in_process(instance=instance).run_id
    report_usage(instance, "acme", "routing", LMUsage(5, 0), run_id=old_failure, reason="")

    later = datetime.now(UTC) + timedelta(seconds=1)
    sweep = delete_old_runs(instance, ["routing"], older_than=later, failures_since=before)
    assert sweep == Sweep(5, None)
    assert set(instance.get_run_ids()) == {*old[-2:], recent_failure, others_run}
    assert not [path for path in Path(instance.root_directory).glob(f"storage/{old[0]}/**/*") if path.is_file()]
    for tenant in ("acme", "globex"):
        kept = instance.fetch_materializations(
            dg.AssetRecordsFilter(ROUTING, asset_partitions=[tenant]), limit=10
        ).records
        assert len(kept) == 1
    assert read_usage(instance, ["routing"], since=before)["acme"].lm_calls == 6  # the outcome kept, and the failure
    assert delete_old_runs(instance, ["routing"], older_than=later, failures_since=before) == Sweep(0, None)


def test_runs_that_are_not_old_or_not_ended_are_left_alone(
    instance: dg.DagsterInstance, runs: Callable[..., str]
) -> None:
    before = datetime.now(UTC)
    ids = {runs("acme") for _ in range(2)}
    assert delete_old_runs(instance, ["routing"], older_than=before, failures_since=before) == Sweep(0, None)
    assert set(instance.get_run_ids()) == ids


def test_a_sweep_out_of_time_goes_on_where_it_stopped(instance: dg.DagsterInstance, runs: Callable[..., str]) -> None:
    ids = [runs("acme") for _ in range(3)]
    later = datetime.now(UTC) + timedelta(seconds=1)
    stopped = delete_old_runs(instance, ["routing"], older_than=later, failures_since=later, seconds=0)
    assert stopped == Sweep(0, None)
    first = instance.get_run_record_by_id(ids[0])
    assert first is not None
    going_on = delete_old_runs(
        instance, ["routing"], older_than=later, failures_since=later, after=first.create_timestamp
    )
    assert going_on == Sweep(1, None)
    assert set(instance.get_run_ids()) == {ids[0], ids[2]}


def test_the_retention_sensor_ticks_and_says_how_many(
    configured: Path, instance: dg.DagsterInstance, runs: Callable[..., str]
) -> None:
    for _ in range(2):
        runs("acme")
    with dg.build_sensor_context(instance=instance, resources={"services": Services()}, cursor="") as context:
        skipped = build_retention_sensor(Settings(run_retention_days=1))(context)
    assert isinstance(skipped, dg.SkipReason)
    assert skipped.skip_message == "0 runs deleted"
