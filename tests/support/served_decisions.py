"""What an application served, as it is read back from Phoenix."""

import time
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import ExampleSet, Label
from autoopt_pipeline.modules.spec import LoggedDecision as Read
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.traces.client import Phoenix

AGENTS = ["search_agent", "report_agent"]
LABELS = tuple(Label(name) for name in AGENTS)


def read(phoenix: Phoenix, tenant: str, module: str, count: int) -> list[Read]:
    """A module's decisions in Phoenix, once they are stored."""
    deadline = time.monotonic() + 60
    while True:
        now = datetime.now(UTC)
        start, end = now - timedelta(hours=1), now + timedelta(minutes=1)
        project = phoenix.project(project_name(tenant))  # comes with its first span
        found = phoenix.decisions(project, get_module(module).contract, start=start, end=end) if project else []
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"{len(found)} of {count} spans arrived"
        time.sleep(0.2)


def examples(module: str, decisions: list[Read]) -> ExampleSet:
    spec = get_module(module)
    return spec.build_examples(spec.labels or LABELS, decisions)
