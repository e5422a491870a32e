"""Demo of the whole loop on this machine: real Phoenix, real Dagster daemon, sample tenants, three rounds."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
from rich import box
from rich.console import Console
from rich.table import Table

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.sample_reviewer import REVIEWER, review_sample_traffic
from autoopt_pipeline.devtools.sample_tenants import (
    FROM_FILE,
    INTERVAL_SECONDS,
    SAMPLE_TENANTS,
    SampleTenant,
    configured_samples,
    right_answers,
    send_sample_traffic,
    tenant_of_file,
)
from autoopt_pipeline.devtools.smollm2 import smollm2_settings, start_smollm2, who_answers
from autoopt_pipeline.devtools.stack import (
    Stack,
    copy_instance,
    start_daemon,
    start_phoenix,
    wait_for_phoenix,
)
from autoopt_pipeline.errors import StackFailed
from autoopt_pipeline.names import NEW_EVIDENCE_TAG, OPTIMIZATION_SENSOR, PARTITION_TAG
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.planner import Plan, plan_tenants
from autoopt_pipeline.run_history.failures import causes_of
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.run_history.module_events import outcomes_of_run
from autoopt_pipeline.run_history.runs import UNFINISHED, RunSummary, runs_created
from autoopt_pipeline.run_history.ticks import finished_ticks, sensor_states
from autoopt_pipeline.scheduling.conditions import Reason
from autoopt_pipeline.settings import STAND_IN, Settings
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix

_SETTLING_SECONDS = 2
_JITTER = 0
_NEW_TRACES = 150
_ROUND_SECONDS = 600
_ROUND_SECONDS_WITH_A_REAL_MODEL = 900


@dataclass(frozen=True)
class DemoOutcome:
    """Outcome of one module of one tenant in one round."""

    tenant: str
    module: str
    round: int
    decision: str
    reason: str
    new_traces: int | None
    examples: dict[str, int] | None = None
    incumbent_score: float | None = None
    candidate_score: float | None = None
    verdict: str | None = None
    version: str | None = None
    run_id: str | None = None
    lm_calls: int = 0
    lm_tokens: int = 0
    language_model: str | None = None
    optimizer: str | None = None


def run_demo(console: Console, home: Path | None = None, *, smollm2: bool = False, queries: Path | None = None) -> None:
    """Run the demo in a new folder, by default in place of this folder's last demo.

    With `smollm2` there is one more tenant, whose answers come from that model, and with `queries` one whose requests
    come from that file. Raises `StackFailed` if a part fails, and `InvalidQueries` if the file cannot be played.
    """
    started = time.monotonic()
    played = tenant_of_file(queries) if queries else None  # a bad file is told before anything starts
    if home is None:
        home = Path.cwd() / ".autoopt" / "demo"
        shutil.rmtree(home, ignore_errors=True)
    home = home.absolute()
    if home.exists() and any(home.iterdir()):
        raise StackFailed(f"{home} is not empty", "name a new folder")
    copy_instance(home)

    def log(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {text}")

    with Processes(home / "logs") as processes:
        lm = smollm2_settings(start_smollm2(processes, home / "smollm2", free_port())) if smollm2 else None
        endpoint = start_phoenix(processes, home / "phoenix", free_port(), free_port())
        stack = Stack(
            home,
            endpoint,
            {
                "AUTOOPT_SENSOR_INTERVAL_SECONDS": "2",
                "AUTOOPT_SETTLING_SECONDS": str(_SETTLING_SECONDS),
                "AUTOOPT_SCHEDULE_JITTER": str(_JITTER),
                "AUTOOPT_LM": STAND_IN,
            },
        )
        start_daemon(processes, stack)
        log("starting Phoenix and the Dagster daemon")
        wait_for_phoenix(processes, endpoint)
        log(f"Phoenix answers at {endpoint}" + (f", {lm.model} at {lm.api_base}" if lm else ""))
        with open_instance(home) as instance:
            outcomes = _Demo(processes, instance, Phoenix(endpoint), home, log, configured_samples(lm, played)).play()
    summary = home / "summary.json"
    summary.write_text(json.dumps({"outcomes": [asdict(o) for o in outcomes]}, indent=1))
    for table in _tables(outcomes):
        console.print(table)
    console.print(who_answers(lm))
    console.print(_what_is_real(outcomes, queries))
    shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    log(f"done; details in {shown}/summary.json, programs in {shown}/.autoopt/artifacts")


class _Demo:
    def __init__(
        self,
        processes: Processes,
        instance: dg.DagsterInstance,
        phoenix: Phoenix,
        home: Path,
        log: Callable[[str], None],
        samples: Sequence[tuple[SampleTenant, RoutingConfigUnified]],
    ) -> None:
        self.processes = processes
        self.instance = instance
        self.phoenix = phoenix
        self.home = home
        self.configs = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
        self.log = log
        self.tenants = [tenant for tenant, _ in samples]
        self.chosen = {tenant.tenant_id: config for tenant, config in samples}
        self.round_seconds = _ROUND_SECONDS_WITH_A_REAL_MODEL if any(c.lm for _, c in samples) else _ROUND_SECONDS
        self.reported: set[str] = set()

    def play(self) -> list[DemoOutcome]:
        self._send_first_traffic()
        for config in self.chosen.values():
            write_config(self.configs, config, actor="autoopt demo")
            register_tenant(self.instance, config.tenant_id)
        self.log(f"round 1: {len(self.tenants)} tenants are configured; the sensor does the rest")
        first = self._round(1, self._launched, since=time.time())
        for tenant in self.tenants:
            seen = {o.verdict or o.decision for o in first if o.tenant == tenant.tenant_id}
            if not tenant.expected & seen:
                raise StackFailed(
                    f"{tenant.tenant_id} ({tenant.shows}) came to {sorted(seen)}, not {sorted(tenant.expected)}",
                    "report this",
                )

        self.log("round 2: no new traffic, so nothing may be launched")
        second = self._round(2, lambda runs: not runs, since=time.time())
        if launched := [o.tenant for o in second if o.run_id]:
            raise StackFailed(f"runs of {launched} were launched without new traces", "report this")

        tenant, reviewed = SAMPLE_TENANTS[0], next(t for t in SAMPLE_TENANTS if "awaiting_reviews" in t.expected)
        since = time.time()
        self._review(reviewed)
        self.log(f"round 3: reviews for {reviewed.tenant_id}, and {_NEW_TRACES} new traces for {tenant.tenant_id}")
        now = datetime.now(UTC)
        send_sample_traffic(self.phoenix, tenant, _NEW_TRACES, start=now - timedelta(seconds=2), end=now, seed=2)
        expected = {tenant.tenant_id, reviewed.tenant_id}
        third = self._round(3, lambda runs: {run.tenant for run in runs} >= expected, since=since)
        if (launched := {o.tenant for o in third if o.run_id}) != expected:
            raise StackFailed(f"runs of {launched} were launched, not of {expected}", "report this")
        return [*first, *second, *third]

    def _review(self, tenant: SampleTenant) -> None:
        """Let the demo's person review what waits."""
        settings = Settings(home=self.home / ".autoopt", phoenix_endpoint=self.phoenix.base_url)
        right = right_answers(tenant, tenant.traces, seed=1)
        for module in tenant.modules:
            given = review_sample_traffic(Connections(settings), tenant.tenant_id, module, right)
            self.log(f"{REVIEWER} gives {given} reviews for {tenant.tenant_id}/{module}")

    def _send_first_traffic(self) -> None:
        end = datetime.now(UTC)
        start = end - timedelta(hours=20)

        def send(tenant: SampleTenant) -> None:
            send_sample_traffic(self.phoenix, tenant, tenant.traces, start=start, end=end, seed=1)

        total = sum(tenant.traces for tenant in self.tenants)
        self.log(f"sending {total} traces of {len(self.tenants)} tenants")
        with ThreadPoolExecutor(len(self.tenants)) as pool:
            list(pool.map(send, self.tenants))
        self.log("all traces are stored")

    def _round(self, number: int, complete: Callable[[list[RunSummary]], bool], *, since: float) -> list[DemoOutcome]:
        """Wait until all runs have ended and the sensor reports that nothing is due."""
        deadline = time.monotonic() + self.round_seconds
        while time.monotonic() < deadline:
            self.processes.check()
            runs = self._runs(since)
            self._report_runs(runs)
            for run in runs:
                if run.status is dg.DagsterRunStatus.FAILURE:
                    causes = "; ".join(causes_of(self.instance, run.run_id).values())
                    raise StackFailed(f"run {run.run_id} failed: {causes}", f"see {self.home / 'logs'}")
            ended = all(run.status not in UNFINISHED for run in runs)
            last_end = max((run.ended_at.timestamp() for run in runs), default=since)
            if ended and complete(runs) and (reason := self._skipped_after(last_end + INTERVAL_SECONDS)):
                self.log(f"the sensor skips: {reason.partition(' (')[0]}")
                return self._outcomes(number, runs)
            time.sleep(0.3)
        raise StackFailed(f"round {number} did not end within {self.round_seconds} s", f"see {self.home / 'logs'}")

    @staticmethod
    def _launched(runs: list[RunSummary]) -> bool:
        return bool(runs)

    def _runs(self, since: float) -> list[RunSummary]:
        return runs_created(self.instance, after=datetime.fromtimestamp(since, UTC))

    def _report_runs(self, runs: list[RunSummary]) -> None:
        for run in runs:
            state = f"{run.run_id}/{run.status.value}"
            if state not in self.reported and run.status is not dg.DagsterRunStatus.NOT_STARTED:
                self.reported.add(state)
                modules = ", ".join(sorted(run.modules))
                self.log(f"run {run.run_id[:8]} of {run.tenant} ({modules}): {run.status.value.lower()}")

    def _skipped_after(self, moment: float) -> str | None:
        """Return the sensor's skip message if it ticked after `moment` and launched nothing."""
        state = sensor_states(self.instance).get(OPTIMIZATION_SENSOR)
        for tick in finished_ticks(self.instance, state, limit=1) if state else ():
            if tick.timestamp > moment and tick.skip_reason:
                return tick.skip_reason
        return None

    def _outcomes(self, number: int, runs: list[RunSummary]) -> list[DemoOutcome]:
        plan = self._plan()
        by_key: dict[tuple[str, str], DemoOutcome] = {}
        for (tenant, module), decision in plan.decisions.items():
            if module not in self.chosen[tenant].modules:
                continue
            new = decision.evidence.new_traces if decision.evidence else None
            by_key[tenant, module] = DemoOutcome(tenant, module, number, decision.reason.value, decision.detail, new)
        for run in runs:
            for outcome in self._run_outcomes(number, run):
                by_key[outcome.tenant, outcome.module] = outcome
        return [by_key[key] for key in sorted(by_key)]

    def _plan(self) -> Plan:
        return plan_tenants(
            self.configs.current(),
            self.instance,
            self.phoenix,
            now=datetime.now(UTC),
            settings=Settings(settling_seconds=_SETTLING_SECONDS, schedule_jitter=_JITTER),
        )

    def _run_outcomes(self, number: int, run: RunSummary) -> Iterator[DemoOutcome]:
        tenant, outcomes = run.tags[PARTITION_TAG], outcomes_of_run(self.instance, run.run_id)
        evidence = dict(part.split("=") for part in run.tags[NEW_EVIDENCE_TAG].split(","))
        for module in run.modules:
            new = int(evidence[module].partition("+")[0])
            materialized = outcomes.get(module)
            if materialized is None:
                raise StackFailed(f"run {run.run_id} of {tenant} failed at {module}", f"see {self.home / 'logs'}")
            yield DemoOutcome(
                tenant=tenant,
                module=module,
                round=number,
                decision=Reason.DUE.value,
                reason=str(materialized["reason"]),
                new_traces=new,
                examples={part: materialized[f"examples_{part}"] for part in ("train", "dev", "holdout")},
                incumbent_score=materialized.get("incumbent_score"),
                candidate_score=materialized.get("candidate_score"),
                verdict=materialized["verdict"],
                version=materialized.get("version"),
                run_id=run.run_id,
                lm_calls=materialized["lm_calls"],
                lm_tokens=materialized["lm_tokens"],
                language_model=materialized["language_model"],
                optimizer=materialized.get("optimizer"),
            )


_TITLES = {
    1: "Round 1: the first traces of each tenant",
    2: "Round 2: no new traffic",
    3: f"Round 3: {_NEW_TRACES} new traces of {SAMPLE_TENANTS[0].tenant_id}, and reviews for initech",
}
_COLORS = {"promoted": "green", "rejected": "yellow"}


def _tables(outcomes: list[DemoOutcome]) -> Iterator[Table]:
    """Return one table of outcomes per round, then one of reasons. Modules skipped for the same reason share a row."""
    reasons = Table(title="Why", title_justify="left", show_header=False, box=None, padding=(0, 1))
    columns = [("tenant", 14), ("module", 17), ("result", 21), ("new", 3), ("score", 10)]
    if several_models := len({o.language_model for o in outcomes if o.language_model}) > 1:
        columns.append(("answered by", 11))
    for number, title in _TITLES.items():
        results = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column, width in columns:
            results.add_column(column, no_wrap=True, min_width=width)
        rows: dict[tuple[object, ...], list[DemoOutcome]] = {}
        for o in outcomes:
            if o.round == number:
                rows.setdefault((o.tenant, o.decision, o.reason, o.run_id and o.module), []).append(o)
        for same in rows.values():
            o = same[0]
            result = o.verdict or o.decision
            modules = ", ".join(outcome.module for outcome in same)
            results.add_row(
                o.tenant,
                modules,
                f"[{_COLORS[result]}]{result}[/]" if result in _COLORS else result,
                "" if o.new_traces is None else str(o.new_traces),
                _scores(o),
                *([_model(o)] if several_models else []),
            )
            if o.run_id or number == 1:
                why = f"{o.optimizer}: {o.reason}" if o.optimizer else o.reason
                reasons.add_row(str(number), f"{o.tenant} {modules}", why)
        yield results
    yield reasons


def _what_is_real(outcomes: Sequence[DemoOutcome], queries: Path | None) -> str:
    """Say which candidates' scores hold for the demo's queries, because no stand-in has a part in them."""
    alone = sorted({f"{o.tenant}/{o.module}" for o in outcomes if o.optimizer == "local-router"})
    if not alone:
        return ""
    source = f"; those of {FROM_FILE} come from {queries.name}" if queries else ""
    return (
        f"The candidate of [bold]{', '.join(alone)}[/bold] is a [bold]local router[/bold]: it learnt from the traces, "
        f"and no model answers. So its score is real, for the queries that it was asked. These are generated{source}."
    )


def _scores(outcome: DemoOutcome) -> str:
    if outcome.incumbent_score is None or outcome.candidate_score is None:
        return ""
    return f"{100 * outcome.incumbent_score:.0f} -> {100 * outcome.candidate_score:.0f} %"


def _model(outcome: DemoOutcome) -> str:
    """Return the model's short name, `stand-in` or `openai/smollm2`, without the explanation of the stand-in."""
    return (outcome.language_model or "").partition(" ")[0]
