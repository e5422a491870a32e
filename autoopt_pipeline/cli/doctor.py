"""`autoopt doctor`: whether everything that the system needs is there and works, and how to mend what does not."""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import connections, console, dagster_home
from autoopt_pipeline.cli.context import instance as opened_instance
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor import instance, process, servers, stores, verdicts, versions
from autoopt_pipeline.doctor.findings import Check, Finding, Status, examine, fail, findings_of
from autoopt_pipeline.doctor.repeatability import repeatability
from autoopt_pipeline.errors import InvalidSettings

_COLORS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}

# Phoenix is not waited for as long as a run would.
_PHOENIX_SECONDS = 5

_LM_SECONDS = 60


def doctor(
    call_lm: Annotated[
        bool, typer.Option("--call-lm", help="Also ask each language model for one word, which may cost something.")
    ] = False,
    aa: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--aa",
            metavar="TENANT MODULE",
            help="Instead, ask the tenant's active program the same recent traces twice, and say what differs.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Look at every setting, store, server and version, and say how to mend what is wrong. Changes nothing.

    What --aa asks, within the tenant's budgets, counts in them.
    Exit status 2 when something fails; warnings alone are 0. Looks from here: a variable may be missing in a run's pod.
    """
    found: list[tuple[str, Finding]] = []
    for check, finding in _asked_twice(*aa) if aa else _examined(call_lm):
        found.append((check, finding))
        if not json:
            _print(check, finding)
    failed = sum(finding.status is Status.FAIL for _, finding in found)
    warnings = sum(finding.status is Status.WARN for _, finding in found)
    if json:
        findings = [
            {"check": check, "status": each.status.value, "what": each.what, "remedy": each.remedy or None}
            for check, each in found
        ]
        console.print_json(data={"failed": failed, "warnings": warnings, "findings": findings})
    else:
        console.print(f"{failed} failed, {warnings} warnings")
    if failed:
        raise typer.Exit(2)


def _examined(call_lm: bool) -> Iterator[tuple[str, Finding]]:
    yield from examine(
        [Check("packages", process.packages), Check("variables", partial(process.variables, os.environ))]
    )
    try:
        parts = connections()
    except InvalidSettings as e:
        yield "settings", fail(e.what, f"{e.remedy}; what the settings lead to is looked at once they are right")
        return
    hurried = min(parts.settings.phoenix_timeout_seconds, _PHOENIX_SECONDS)
    parts = Connections(parts.settings.model_copy(update={"phoenix_timeout_seconds": hurried}))
    yield from examine(_checks(parts, call_lm))


def _asked_twice(tenant: str, module: str) -> Iterator[tuple[str, Finding]]:
    """Takes as long as the model does, so in this thread, where Ctrl-C ends it."""
    parts, home = connections(patient=True), dagster_home()
    with opened_instance() if home else nullcontext() as opened:
        for finding in findings_of(partial(repeatability, parts, opened, tenant, module)):
            yield "repeatability", finding


def _checks(parts: Connections, call_lm: bool) -> list[Check]:
    return [
        Check("settings", partial(process.settings, parts.settings)),
        Check("modules", partial(process.installed_modules, parts.settings)),
        Check("config store", partial(stores.config_store, parts), "check AUTOOPT_CONFIG_STORE_URL and the way there"),
        Check("artifacts", partial(stores.artifact_store, parts), "check AUTOOPT_ARTIFACTS_URL and the way there"),
        Check(
            "versions",
            partial(versions.active_versions, parts),
            "check AUTOOPT_ARTIFACTS_URL and the way there",
            versions.SECONDS + Check.seconds,
        ),
        Check("phoenix", partial(servers.phoenix, parts), "check AUTOOPT_PHOENIX_ENDPOINT and the way there"),
        Check(
            "lm",
            partial(servers.language_models, parts, call=call_lm),
            "check the configuration store, which names the models, and their endpoints",
            _LM_SECONDS if call_lm else Check.seconds,
        ),
        Check("code location", instance.code_location),
        # Last, because opening an instance changes the current folder meanwhile.
        Check("dagster", lambda: instance.dagster_instance(dagster_home()), "check the storage in dagster.yaml"),
        Check(
            "verdicts",
            lambda: verdicts.last_verdicts(parts, dagster_home()),
            "check the storage in dagster.yaml",
            verdicts.SECONDS + Check.seconds,
        ),
    ]


def _print(check: str, finding: Finding) -> None:
    told = finding.what if finding.status is Status.OK else f"{finding.what} -> {finding.remedy}"
    status = f"[{_COLORS[finding.status]}]{finding.status.value:<4}[/]"
    console.print(f"{status}  {check:<13}  {escape(told)}", highlight=False)
