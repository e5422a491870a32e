"""A whole deployment on this machine, with fast intervals, that faults are done to.

Phoenix behind a proxy, Redis for the configurations, a folder of artifacts, the Dagster daemon with its code server,
and the stand-in for a language model.
"""

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
import redis
import yaml
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.devtools.sample_tenants import SampleTenant, sample_config
from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.stack import Stack, copy_instance, start_daemon, start_phoenix, wait_for_phoenix
from autoopt_pipeline.devtools.traffic import (
    SAMPLE_AGENTS,
    PlayedRequest,
    SyntheticRequest,
    sample_truths_for,
    simulate_requests,
)
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.orchestration.planner import Plan, PlanOptions, plan_tenants
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.run_history.runs import UNFINISHED
from autoopt_pipeline.run_history.ticks import causes, sensor_states
from autoopt_pipeline.scheduling.conditions import Reason, ScheduleDecision
from autoopt_pipeline.settings import STAND_IN, Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.chaos.faults import Proxy, own_disk, proxy
from tests.support.postgres import Postgres, new_postgres

INTERVAL_SECONDS = 3
MIN_SAMPLES = 40
MAX_LM_CALLS = 3000
"""For a short search, and for what is held out, which grows with every round."""

FIRST_TRACES = 450
"""Enough for a first promotion."""

SETTLED_SECONDS = 400.0
"""Longest wait for everything due to have its outcome: a few attempts on a machine that has other work."""

_QUICK = {"start_timeout_seconds": 90, "poll_interval_seconds": 2}
_AT_REST = {Reason.TOO_FEW_TRACES, Reason.DISABLED}


Change = Callable[[list[PlayedRequest]], Iterable[PlayedRequest]]


@dataclass
class World:
    """What runs, and what is known of it that it is not told."""

    home: Path
    processes: Processes
    stack: Stack
    phoenix: Phoenix
    proxy: Proxy
    redis_port: int
    configs: TenantConfigStore
    instance: dg.DagsterInstance
    has_own_disk: bool
    postgres: Postgres | None
    tenants: dict[str, SampleTenant] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    sent: Counter[str] = field(default_factory=Counter)
    """How often traffic was sent by tenant: it is the same every day."""

    @property
    def artifacts_folder(self) -> Path:
        return self.home / ".autoopt" / "artifacts"

    @property
    def files(self) -> ObjectStore:
        return ObjectStore(str(self.artifacts_folder))

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.redis_port)

    def add_tenant(self, name: str, *, traces: int = FIRST_TRACES, change: Change = iter) -> None:
        """Configure a tenant whose traces are there already; `change` may do something to them."""
        self.tenants[name] = SampleTenant(name, "", frozenset(), traces, modules=("modality",))
        end = datetime.now(UTC) - timedelta(seconds=2)
        self.send(name, traces, start=end - timedelta(hours=3), end=end, change=change)
        self.configure(name)

    def configure(self, name: str, **fields: object) -> None:
        config = {
            **sample_config(self.tenants[name]).model_dump(),
            "optimization_interval_seconds": INTERVAL_SECONDS,
            "min_samples_for_optimization": MIN_SAMPLES,
            "retry": {"max_retries": 1, "delay_seconds": 1},
            "budget": {"max_lm_calls": MAX_LM_CALLS},
            **fields,
        }
        write_config(self.configs, RoutingConfigUnified.model_validate(config))

    def remove_tenant(self, name: str) -> None:
        del self.tenants[name]
        self.configs.write(name, None)

    def send(self, name: str, traces: int, *, start: datetime, end: datetime, change: Change = iter) -> None:
        """Traffic whose every query names its tenant, so that it is known wherever it turns up."""
        tenant = self.tenants[name]
        rng = random.Random(f"{name}/{self.sent[name]}")
        self.sent[name] += 1
        labels = get_module("modality").labels or ()
        choices = {"agent": list(SAMPLE_AGENTS), "modality": [label.name for label in labels]}
        truths = [
            SyntheticRequest(
                f"{truth.query} {marker(name)}", truth.answers, truth.agents, truth.parallel, truth.modalities
            )
            for truth in sample_truths_for(tenant.habits, traces, rng)
        ]
        played = list(simulate_requests(truths, choices, tenant.habits, start=start, end=end, rng=rng))
        send_traffic(self.phoenix, name, list(change(played)))

    def feed(self, name: str) -> None:
        """Send as many new traces as make every module of the tenant due."""
        decisions = self.plan(count_all=True).decisions
        need = max((d.need or MIN_SAMPLES for (t, _), d in decisions.items() if t == name), default=0)
        now = datetime.now(UTC)
        self.send(name, need + 5, start=now - timedelta(seconds=1), end=now)

    def plan(self, *, count_all: bool = False) -> Plan:
        """What the sensor would decide now if nothing were wrong with its Phoenix."""
        settings = Settings(settling_seconds=0, schedule_jitter=0)
        now = datetime.now(UTC)
        stored = self.configs.current()
        options = PlanOptions(count_all=count_all)
        return plan_tenants(stored, self.instance, self.phoenix, now=now, settings=settings, options=options)

    def unsettled(self) -> dict[ModuleKey, ScheduleDecision]:
        """What waits for a run or an outcome; tenants that are broken on purpose are left out."""
        decisions = self.plan().decisions
        return {key: d for key, d in decisions.items() if d.reason not in _AT_REST and key[0] not in self.broken}

    def settle(self, seconds: float = SETTLED_SECONDS) -> None:
        """Wait until everything due has an outcome. Servers that died are started again, as a supervisor would."""
        deadline = time.monotonic() + seconds
        while True:
            self.supervise()
            left = self.unsettled()
            if not left and not self.instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
                return
            if time.monotonic() > deadline:
                decided = {f"{t}/{m}": f"{d.reason.value}: {d.detail}" for (t, m), d in left.items()}
                raise AssertionError(f"not settled within {seconds:.0f} s: {decided}; troubles: {self.troubles()[-6:]}")
            time.sleep(0.7)

    def supervise(self) -> None:
        """Start again what has died, as systemd or Kubernetes would."""
        for name, process in list(self.processes._started.items()):
            if process.poll() is not None:
                self.start(name)

    def start(self, name: str) -> None:
        if name == "dagster-daemon":
            start_daemon(self.processes, self.stack)
        elif name == "redis":
            _start_redis(self.processes, self.home, self.redis_port)
        elif name == "postgres" and self.postgres:
            self.postgres.start(self.processes)
        elif name == "phoenix":
            port = int(self.phoenix.endpoint.rpartition(":")[2])
            start_phoenix(self.processes, self.home / "phoenix", port, free_port())
            wait_for_phoenix(self.processes, self.phoenix.endpoint)

    def stop(self, name: str, how: signal.Signals) -> None:
        """End a server and wait until it is gone."""
        process = self.processes._started[name]
        process.send_signal(how)
        process.wait()

    def forget(self, name: str) -> None:
        """End a server that is not to be started again."""
        self.stop(name, signal.SIGKILL)
        del self.processes._started[name]

    def kill(self, what: str) -> bool:
        """kill -9. False where there is no such process now."""
        found = self.pids(what)
        for pid in found:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
        return bool(found)

    def pids(self, what: str) -> list[int]:
        """The processes that are meant by a server's name, or by `code server`, `run worker`, `step`."""
        if what in self.processes._started:
            process = self.processes._started[what]
            return [process.pid] if process.poll() is None else []
        mine = [process for process in psutil.process_iter() if self._is_mine(process)]
        if what == "code server":
            return [process.pid for process in mine if "grpc" in _command(process)]
        workers = {process.pid for process in mine if "spawn_main" in _command(process)}
        if what == "run worker":
            return sorted(workers)
        forked = [process.pid for process in mine if "forkserver" in _command(process)]
        return forked[-1:]  # a step, or the server that steps are forked from

    def _is_mine(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("DAGSTER_HOME") == str(self.home)
        except (psutil.Error, OSError):
            return False

    def troubles(self) -> list[str]:
        """What the system itself says went wrong: failed runs by cause, failed ticks, and what ticks report."""
        told = []
        for record in self.instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])):
            run_id = record.dagster_run.run_id
            told += [f"run {run_id}: {module}: {cause}" for module, cause in causes_of(self.instance, run_id).items()]
        for tick in self.ticks():
            if tick.is_failure:
                told.append(f"tick {tick.instigator_name}: " + " <- ".join(e.message.strip() for e in causes(tick)))
            elif tick.cursor and '"phoenix_error":"' in tick.cursor:
                told.append(f"tick {tick.instigator_name}: {tick.cursor}")
        return told

    def ticks(self) -> list[InstigatorTick]:
        finished = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
        return [
            tick
            for state in sensor_states(self.instance).values()
            for tick in self.instance.get_ticks(
                state.instigator_origin_id, state.selector_id, limit=100, statuses=finished
            )
        ]

    def wait_for_trouble(self, text: str, *, known: list[str], seconds: float = 180) -> str:
        """Wait until the system says this of a new trouble."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.supervise()
            new = [trouble for trouble in self.troubles() if trouble not in known]
            for trouble in new:
                if text in trouble:
                    return trouble
            time.sleep(0.5)
        raise AssertionError(f"nobody said {text!r} within {seconds:.0f} s, but: {new[-6:]}")

    def wait_until(self, holds: Callable[[], bool], *, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"not so within {seconds:.0f} s; troubles: {self.troubles()[-6:]}"
            self.supervise()
            time.sleep(0.5)

    def wait_for_run(self, *, seconds: float = 180) -> dg.DagsterRun:
        """Wait until a run has begun."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.supervise()
            for run in self.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
                return run
            time.sleep(0.2)
        raise AssertionError(f"no run began within {seconds:.0f} s; troubles: {self.troubles()[-6:]}")


def marker(tenant: str) -> str:
    """A word that stands in every query of the tenant, and of no other."""
    return f"xx{tenant}xx"


@contextmanager
def world(home: Path, *, postgres: bool = False) -> Generator[World]:
    """Start everything, with Dagster's storage on SQLite or on Postgres. On leaving, all of it is gone."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    with (
        new_postgres() if postgres else nullcontext() as database,
        own_disk(home / ".autoopt" / "artifacts", "50m") as has_own_disk,
        Processes(home / "logs") as processes,
    ):
        if database:
            database.start(processes)
        _write_instance(home, database)
        endpoint = start_phoenix(processes, home / "phoenix", free_port(), free_port())
        redis_port = free_port()
        _start_redis(processes, home, redis_port)
        store_url = f"redis://{LOOPBACK}:{redis_port}/0"
        with proxy(endpoint) as before_phoenix:
            stack = Stack(
                home,
                before_phoenix.url,
                {
                    "AUTOOPT_CONFIG_STORE_URL": store_url,
                    "AUTOOPT_SENSOR_INTERVAL_SECONDS": "2",
                    "AUTOOPT_SETTLING_SECONDS": "1",
                    "AUTOOPT_PHOENIX_TIMEOUT_SECONDS": "4",
                    "AUTOOPT_SCHEDULE_JITTER": "0",
                    "AUTOOPT_LM": STAND_IN,
                },
            )
            start_daemon(processes, stack)
            wait_for_phoenix(processes, endpoint)
            with open_instance(home) as instance:
                yield World(
                    home,
                    processes,
                    stack,
                    Phoenix(endpoint),
                    before_phoenix,
                    redis_port,
                    open_config_store(store_url),
                    instance,
                    has_own_disk,
                    database,
                )


def _write_instance(home: Path, database: Postgres | None) -> None:
    copy_instance(home)
    config = yaml.safe_load((home / "dagster.yaml").read_text())
    config["run_monitoring"] |= _QUICK
    if database:
        config["storage"] = database.dagster_storage
    (home / "dagster.yaml").write_text(yaml.safe_dump(config))


def _start_redis(processes: Processes, home: Path, port: int) -> None:
    folder = home / "redis"
    folder.mkdir(exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", LOOPBACK, "--appendonly", "yes", "--dir", str(folder)]
    processes.start("redis", command, env={}, cwd=folder)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
