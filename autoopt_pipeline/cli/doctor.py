"""`autoopt doctor`: checks everything that the system needs, and suggests how to fix errors."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, dagster_home, open_connections
from autoopt_pipeline.cli.context import instance as opened_instance
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor import instance, process, servers, stores, verdicts, versions
from autoopt_pipeline.doctor.findings import Check, Finding, Status, examine, fail, findings_of
from autoopt_pipeline.doctor.repeatability import repeatability
from autoopt_pipeline.errors import InvalidSettings

_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}

# Longest wait for one answer of Phoenix; a run waits longer.
_PHOENIX_SECONDS = 5

_LM_SECONDS = 60


def doctor(
    call_lm: Annotated[
        bool, typer.Option("--call-lm", help="Also send each language model a short request, which may cost something.")
    ] = False,
    aa: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--aa",
            metavar="TENANT MODULE",
            help="Instead, run the tenant's active program twice on the same recent traces, and show the differences.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check every setting, store, server and version, and suggest how to fix errors. Changes nothing.

    The calls of --aa count in the tenant's budgets.
    Exit status 2 if a check fails; warnings alone are 0. The checks run on this machine: a variable may still be
    missing in a run's pod.
    """
    findings: list[tuple[str, Finding]] = []
    for check, finding in _repeatability(*aa) if aa else _findings(call_lm):
        findings.append((check, finding))
        if not json:
            _print(check, finding)
    failed = sum(finding.status is Status.FAIL for _, finding in findings)
    warnings = sum(finding.status is Status.WARN for _, finding in findings)
    if json:
        entries = [
            {"check": check, "status": finding.status.value, "what": finding.what, "remedy": finding.remedy or None}
            for check, finding in findings
        ]
        console.print_json(data={"failed": failed, "warnings": warnings, "findings": entries})
    else:
        console.print(f"{failed} failed, {warnings} warnings")
    if failed:
        raise typer.Exit(2)


def _findings(call_lm: bool) -> Iterator[tuple[str, Finding]]:
    yield from examine(
        [Check("packages", process.packages), Check("variables", partial(process.variables, os.environ))]
    )
    try:
        connections = open_connections()
    except InvalidSettings as e:
        yield "settings", fail(e.what, f"{e.remedy}; the other checks need correct settings")
        return
    timeout = min(connections.settings.phoenix_timeout_seconds, _PHOENIX_SECONDS)
    connections = Connections(connections.settings.model_copy(update={"phoenix_timeout_seconds": timeout}))
    yield from examine(_checks(connections, call_lm))


def _repeatability(tenant: str, module: str) -> Iterator[tuple[str, Finding]]:
    """Compare two runs of a program. Runs in this thread, so that Ctrl-C ends even a slow model's calls."""
    connections, home = open_connections(patient=True), dagster_home()
    with opened_instance() if home else nullcontext() as opened:
        for finding in findings_of(partial(repeatability, connections, opened, tenant, module)):
            yield "repeatability", finding


def _checks(connections: Connections, call_lm: bool) -> list[Check]:
    return [
        Check("settings", partial(process.settings, connections.settings)),
        Check("modules", partial(process.installed_modules, connections.settings)),
        Check(
            "config store",
            partial(stores.config_store, connections),
            "check AUTOOPT_CONFIG_STORE_URL and the network",
        ),
        Check("artifacts", partial(stores.artifact_store, connections), "check AUTOOPT_ARTIFACTS_URL and the network"),
        Check(
            "versions",
            partial(versions.active_versions, connections),
            "check AUTOOPT_ARTIFACTS_URL and the network",
            versions.SECONDS + Check.seconds,
        ),
        Check("phoenix", partial(servers.phoenix, connections), "check AUTOOPT_PHOENIX_ENDPOINT and the network"),
        Check(
            "lm",
            partial(servers.language_models, connections, call=call_lm),
            "check the configuration store, which names the models, and their endpoints",
            _LM_SECONDS if call_lm else Check.seconds,
        ),
        Check("code location", instance.code_location),
        # Last, because opening an instance temporarily changes the current folder.
        Check("dagster", lambda: instance.dagster_instance(dagster_home()), "check the storage in dagster.yaml"),
        Check(
            "verdicts",
            lambda: verdicts.last_verdicts(connections, dagster_home()),
            "check the storage in dagster.yaml",
            verdicts.SECONDS + Check.seconds,
        ),
    ]


def _print(check: str, finding: Finding) -> None:
    text = finding.what if finding.status is Status.OK else f"{finding.what} -> {finding.remedy}"
    status = f"[{_COLORS[finding.status]}]{finding.status.value:<4}[/]"
    console.print(f"{status}  {check:<13}  {escape(text)}", highlight=False)
