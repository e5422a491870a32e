"""`autoopt trigger`: checks a tenant's conditions as the sensor does, and runs the modules that are due."""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_module, complete_tenant
from autoopt_pipeline.cli.context import console, instance, open_connections
from autoopt_pipeline.cli.progress import viewing
from autoopt_pipeline.errors import AutooptError, RunFailed
from autoopt_pipeline.registry.program_cost import dollars_text
from autoopt_pipeline.scheduling.conditions import Reason, ScheduleDecision
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.store import newest_version
from autoopt_pipeline.text import one_line, percent

if TYPE_CHECKING:
    from collections.abc import Generator

    import dagster as dg

    from autoopt_pipeline.clients import Connections
    from autoopt_pipeline.orchestration.launch import RunResult
    from autoopt_pipeline.orchestration.run_requests import RequestedRun
    from autoopt_pipeline.tenants.stores.base import StoredConfig

SKIPPED_STATUS = 1

_SHOWN = {True: "[green]yes[/]", False: "[yellow]no[/] ", None: "[dim]?[/]  "}


def trigger(
    tenant_id: Annotated[
        str, typer.Option("--tenant-id", help="Tenant: 'acme' or 'org:tenant'.", autocompletion=complete_tenant)
    ],
    module: Annotated[
        list[str] | None,
        typer.Option(help="Module; can be repeated [default: all due modules].", autocompletion=complete_module),
    ] = None,
    phoenix_endpoint: Annotated[
        str | None, typer.Option(help="Phoenix to read [default: AUTOOPT_PHOENIX_ENDPOINT].")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Ignore the interval, the back-off and the number of new traces.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the conditions, estimate the cost, and run nothing.")
    ] = False,
    launch: Annotated[
        bool, typer.Option("--launch", help="Run through Dagster's queue and launcher instead of in this process.")
    ] = False,
) -> None:
    """Check and print the conditions as the sensor does, and run the modules that are due.

    Exit status 0: they ran (with --dry-run: they would). 1: skipped. 2: an error.
    """
    from autoopt_pipeline.orchestration.run_requests import check_request

    if phoenix_endpoint:
        if launch:
            raise typer.BadParameter("a launched run uses the Phoenix of its own settings", param_hint="--launch")
        os.environ["AUTOOPT_PHOENIX_ENDPOINT"] = phoenix_endpoint  # the run in this process reads it too
    connections = open_connections()
    stored = newest_version(connections.configs, tenant_id)
    with instance() as opened:
        requested = check_request(stored, module or [], opened, connections, force=force)
        chosen = requested.modules
        _print_conditions(tenant_id, requested.decisions, chosen)
        for name in chosen if dry_run else ():
            _print_estimate(opened, connections, stored, name)
        if chosen and not dry_run:
            _print_result(_run(opened, connections.settings, requested, launch=launch), tenant_id, chosen)
    if requested.plan.errors():
        raise typer.Exit(2)
    if not chosen:
        raise typer.Exit(SKIPPED_STATUS)


def _print_conditions(tenant: str, decisions: Mapping[str, ScheduleDecision], chosen: Sequence[str]) -> None:
    groups: dict[ScheduleDecision, list[str]] = {}
    for module, decision in decisions.items():
        groups.setdefault(decision, []).append(module)
    for decision, modules in groups.items():
        console.print(f"[bold]{escape(tenant)}/{escape(','.join(modules))}[/]")
        width = max((len(condition.name) for condition in decision.conditions), default=0)
        for condition in decision.conditions:
            console.print(f"  {_SHOWN[condition.met]}  {condition.name:<{width}}  {escape(condition.detail)}")
        # Modules with the same decision run together or not at all, so the first one represents the group.
        text = f"{decision.reason.value}, {escape(decision.detail)}"
        if decision.reason is Reason.ERROR:
            console.print(f"  [red]error[/]: {escape(decision.detail)}")
        elif modules[0] not in chosen:
            console.print(f"  [yellow]skipped[/]: {text}")
        else:
            console.print("  [green]to run[/]" + ("" if decision.launch else f", forced: {text}"))


def _print_estimate(opened: "dg.DagsterInstance", connections: "Connections", entry: "StoredConfig", name: str) -> None:
    from autoopt_pipeline.orchestration.run_estimates import estimate_run

    where = f"[bold]{escape(entry.tenant_id)}/{escape(name)}[/]"
    try:
        expected = estimate_run(opened, connections, entry, name)
    except AutooptError as e:
        console.print(f"{where}: no estimate: {escape(str(e))}")
        return
    basis = ", corrected by the last search" if expected.corrected else ""
    console.print(
        f"{where}: about {_rounded(expected.lm_calls)} LM calls and {_rounded(expected.lm_tokens)} tokens, "
        f"{dollars_text(expected.lm_dollars)}: {escape(expected.purpose)}{basis}"
    )


def _rounded(number: float) -> str:
    """Two digits that count."""
    return f"{float(f'{number:.2g}'):,.0f}"


def _run(opened: "dg.DagsterInstance", settings: Settings, requested: "RequestedRun", *, launch: bool) -> "RunResult":
    from autoopt_pipeline.orchestration.launch import follow
    from autoopt_pipeline.orchestration.run_requests import execute_request, launch_request

    started = time.monotonic()
    with viewing() as view:

        def print_line(line: str) -> None:
            text = escape(one_line(line, full=False, length=400))
            view.lines.print(f"[dim]{time.monotonic() - started:6.1f} s[/dim]  {text}")

        if not launch:
            from autoopt_pipeline.definitions import defs

            return execute_request(defs, opened, requested, print_line, view.show)
        run_id = launch_request(opened, requested, settings)
        with _reporting_interrupt(run_id, requested.tenant):
            return follow(opened, run_id, print_line, view.show)


@contextmanager
def _reporting_interrupt(run_id: str, tenant: str) -> "Generator[None, None, None]":
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"run {run_id} continues in Dagster; see 'autoopt status {tenant}'")
        raise


def _print_result(result: "RunResult", tenant: str, modules: Sequence[str]) -> None:
    """Print each module's outcome. Raises `RunFailed` if a module has no outcome and was not left to another run."""
    for module, metadata in sorted(result.outcomes.items()):
        console.print(f"{tenant}/{module}: [bold]{metadata.get('verdict', '')}[/], {_reason(metadata)}")
    missing = [module for module in modules if module not in result.outcomes]
    if missing and result.skipped and not result.causes:
        console.print(f"{tenant}/{','.join(missing)}: [yellow]skipped[/]: {escape(result.skipped)}")
        raise typer.Exit(SKIPPED_STATUS)
    if missing:
        causes = "; ".join(f"{step}: {cause}" for step, cause in result.causes.items()) or result.status.value.lower()
        raise RunFailed(
            f"{tenant}/{','.join(missing)}: run {result.run_id} failed: {causes}",
            f"see the run in Dagster, and 'autoopt why {tenant} {missing[0]}' for when it is tried again",
        )


def _reason(metadata: dict[str, Any]) -> str:
    text = escape(str(metadata.get("reason", "")))
    if "incumbent_score" in metadata:
        text += f"; score {percent(metadata['incumbent_score'])} -> {percent(metadata['candidate_score'])} %"
    if version := metadata.get("version"):
        text += f"; version {version}"
    return f"{text}; {metadata.get('active_version', 'baseline')} serves"
