"""The executor: the modules of a run are executed in parallel, each in a process of its own.

A module mostly waits for the language model. The processes are forked from a server that has imported everything, so
five of them cost one import and not five.
"""

import dagster as dg

MODULES_AT_ONCE = 5

_PRELOADED = [
    "autoopt_pipeline.definitions",
    "autoopt_pipeline.optimization.pipeline",
    "autoopt_pipeline.orchestration.run_report",
    "pandas",
    "phoenix.client",
]

module_executor = dg.multiprocess_executor.configured(
    {"start_method": {"forkserver": {"preload_modules": _PRELOADED}}, "max_concurrent": MODULES_AT_ONCE},
    name="modules_side_by_side",
)
