"""The same assets with other executors than ours, for bench/overhead.py: which one, BENCH_EXECUTOR says."""

import os

import dagster as dg

from autoopt_pipeline.orchestration.assets import build_module_assets
from autoopt_pipeline.orchestration.executor import module_executor
from autoopt_pipeline.orchestration.resources import Services

EXECUTORS = {
    "forkserver": module_executor,
    "spawn": dg.multiprocess_executor.configured({"max_concurrent": 5}, name="spawned"),
    "in_process": dg.in_process_executor,
}

defs = dg.Definitions(
    assets=build_module_assets(),
    resources={"services": Services()},
    executor=EXECUTORS[os.environ["BENCH_EXECUTOR"]],
)
