"""The command `autoopt`, run in this process as a person types it."""

import contextlib
import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import dagster as dg
import pytest

from autoopt_pipeline.cli import context, main
from autoopt_pipeline.orchestration.partitions import registered_tenants

AUTOOPT = Path(sys.executable).parent / "autoopt"
AGENTS = [
    word
    for name in ("search_agent", "summary_agent", "report_agent", "support_agent")
    for word in ("--agent", f"{name}=does {name}")
]


def autoopt(*arguments: str, status: int = 0, width: int = 200, env: Mapping[str, str] | None = None) -> str:
    """Run the entry point and return what it prints, or its error where there is one."""
    out, err = io.StringIO(), io.StringIO()
    returned = 0
    # A command sets variables for its process, which is this one.
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ, env or {}):
        patch.setattr(sys, "argv", ["autoopt", *arguments])
        patch.setattr(context.console, "file", out)
        patch.setattr(context.console, "width", width)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main.run()
            except SystemExit as e:
                returned = int(e.code or 0)
    assert returned == status, out.getvalue() + err.getvalue()
    # On a busy machine a command also tells that it waits.
    error = "".join(line for line in err.getvalue().splitlines(True) if not line.startswith("waiting for Phoenix at "))
    return error or out.getvalue()


def partitions(home: Path) -> set[str]:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return registered_tenants(instance)
