"""What does a run cost besides the calls of the language model?

    python bench/overhead.py

First the bare imports. Then real runs of `dagster asset materialize` against a real Phoenix with 450 traces of the
sample tenant, and an endpoint that answers in 50 ms: one module, and five at once, each with the executor as shipped
(processes forked from one that has imported everything), with Dagster's own (a new process for each step), and one
after another in one process. From the launch of the command to the first LM call, to the end, and the CPU of all its
processes. Writes bench/results/overhead.json and overhead.md; see bench/README.md.
"""

import argparse
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from writing import table, write_results

from autoopt_pipeline.devtools.processes import Processes, free_port
from autoopt_pipeline.devtools.sample_tenants import SAMPLE_TENANTS, sample_config, send_sample_traffic
from autoopt_pipeline.devtools.stack import Stack, copy_instance, start_phoenix, wait_for_phoenix
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.store import open_config_store, write_config
from autoopt_pipeline.traces.client import Phoenix

HERE = Path(__file__).parent
IMPORTS = {
    "Python": "pass",
    "Dagster": "import dagster",
    "what Dagster loads": "import autoopt_pipeline.definitions",
    "DSPy": "import dspy",
    "all that a step needs": "import autoopt_pipeline.definitions, autoopt_pipeline.optimization.pipeline, "
    "autoopt_pipeline.orchestration.run_report, pandas, phoenix.client",
}
WAYS = {"forkserver": "as shipped", "spawn": "a new process for each step", "in_process": "one after another"}
CALLS = 1500
"""Budget of each module."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    imports = [_import(what, code) for what, code in IMPORTS.items()]
    runs = _runs()
    write_results("overhead", {"imports": imports, "runs": runs}, table(imports), table(runs))


def _import(what: str, code: str) -> dict[str, Any]:
    times = [_measured([sys.executable, "-c", code], dict(os.environ)) for _ in range(3)]
    wall, cpu = min(times)
    line = {"import": what, "wall s": round(wall, 2), "CPU s": round(cpu, 2)}
    print(line)
    return line


def _runs() -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder) / "logs") as processes:
        home, port = Path(folder) / "home", free_port()
        copy_instance(home)
        phoenix = start_phoenix(processes, Path(folder) / "phoenix", free_port(), free_port())
        endpoint = f"http://127.0.0.1:{port}"
        processes.start("endpoint", [sys.executable, str(HERE / "endpoint.py"), str(port), "0.05"], env={}, cwd=HERE)
        processes.wait_for_http("endpoint", endpoint, seconds=20)
        wait_for_phoenix(processes, phoenix)
        settings = {"AUTOOPT_LM": "openai/bench", "AUTOOPT_LM_API_BASE": endpoint, "AUTOOPT_SETTLING_SECONDS": "0"}
        stack = Stack(home, phoenix, settings)
        for way in WAYS:
            for modules in (["routing"], list(SAMPLE_TENANTS[0].modules)):
                tenant = f"{way.replace('_', '-')}-{len(modules)}"
                _add(home, phoenix, tenant)
                found.append(_run(stack, endpoint, tenant, way, modules))
    return found


def _add(home: Path, phoenix: str, tenant: str) -> None:
    sample = replace(SAMPLE_TENANTS[0], tenant_id=tenant)
    end = datetime.now(UTC) - timedelta(minutes=1)
    send_sample_traffic(Phoenix(phoenix), sample, 450, start=end - timedelta(hours=2), end=end, seed=1)
    config = sample_config(sample)
    budget = config.budget.model_copy(update={"max_lm_calls": CALLS})
    store = open_config_store(f"sqlite:///{home / '.autoopt' / 'config.db'}")
    write_config(store, config.model_copy(update={"budget": budget}))
    with open_instance(home) as instance:
        register_tenant(instance, tenant)


def _run(stack: Stack, endpoint: str, tenant: str, way: str, modules: list[str]) -> dict[str, Any]:
    httpx.delete(endpoint)
    command = [str(Path(sys.executable).parent / "dagster"), "asset", "materialize", "-f", str(HERE / "executors.py")]
    began = time.time()
    env = {**os.environ, **stack.env, "BENCH_EXECUTOR": way, "PYTHONPATH": str(HERE.parent)}
    wall, cpu = _measured([*command, "--select", ",".join(modules), "--partition", tenant], env, stack.home)
    seen = httpx.get(endpoint).json()
    line = {
        "modules": len(modules),
        "executed": WAYS[way],
        "to the first LM call, s": round(seen["first"] - began, 1),
        "LM calls": seen["calls"],
        "wall s": round(wall, 1),
        "CPU s": round(cpu, 1),
    }
    print(line)
    return line


def _measured(command: list[str], env: dict[str, str], cwd: Path = HERE) -> tuple[float, float]:
    """Seconds, and CPU seconds of the command and of all that it started.

    Looked at ten times a second, for nobody waits for the processes of a fork server.
    """
    used: dict[int, float] = {}
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        running = psutil.Popen(command, env=env, cwd=cwd, stdout=out, stderr=out)
        while True:
            ended = running.poll() is not None
            with suppress(psutil.NoSuchProcess):
                for process in (running, *running.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        times = process.cpu_times()
                        used[process.pid] = times.user + times.system
            if ended:
                break
            time.sleep(0.1)
        took = time.monotonic() - began
        if running.returncode:
            out.seek(0)
            raise SystemExit(out.read()[-3000:])
    return took, sum(used.values())


if __name__ == "__main__":
    main()
