"""`autoopt forget`: erases a trace's text from everything that was learnt from it."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, current_user, dagster_home, instance, open_connections
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.errors import UnknownTrace
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.config import valid_trace_id

if TYPE_CHECKING:
    from autoopt_pipeline.erasure.service import Erasure


def forget(
    tenant: TenantId,
    traces: Annotated[list[str], typer.Argument(help="Trace ids, as Phoenix shows them: 32 hexadecimal digits.")],
    query: Annotated[
        list[str] | None,
        typer.Option(help="The text itself, exactly as it was asked, where Phoenix does not have the trace any more."),
    ] = None,
) -> None:
    """Remove the text of traces from programs and datasets at once, and never learn from them again.

    It can be repeated, and finishes what was left undone. Exit status 2 when it has to be.
    """
    from autoopt_pipeline.erasure.service import erase

    validate_tenant_id(tenant)
    trace_ids = [_trace_id(trace) for trace in traces]
    parts = open_connections(patient=True)
    with instance() if dagster_home() else nullcontext() as opened:
        erasure = erase(parts, opened, tenant, trace_ids, query or [], actor=current_user())
    _print_done(tenant, trace_ids, erasure)
    if opened is None:
        console.print("no Dagster instance here: repeat this command when a run that is under way now has ended")
    _print_left(parts.phoenix.endpoint, trace_ids, erasure.quoting_runs)
    if erasure.unfinished_run:
        console.print(
            f"[red]run {erasure.unfinished_run} was under way and may have read the traces before:[/red] "
            "repeat this command when it has ended"
        )
        raise typer.Exit(2)


def _trace_id(text: str) -> str:
    try:
        return valid_trace_id(text)
    except ValueError as e:
        raise UnknownTrace(str(e), "copy it from the trace's page in Phoenix") from None


def _print_done(tenant: str, trace_ids: Sequence[str], erasure: "Erasure") -> None:
    for trace_id in erasure.not_found:
        console.print(f"{trace_id}: Phoenix has no query of this trace, so the text given was looked for")
    if erasure.tenant_removed:
        console.print(
            f"{tenant} is removed, so nothing is learnt; delete the traces in Phoenix before you add it again"
        )
    else:
        version = erasure.config_version
        written = f"configuration version {version}" if version else "the configuration says so already"
        console.print(f"{tenant}: never learnt from again: {', '.join(trace_ids)}; {written}")
    for module, count in erasure.datasets.items():
        console.print(f"{module}: {count} examples stood in its Phoenix dataset, which is deleted")
    for module, versions in erasure.programs.items():
        if versions.now:
            console.print(f"{module}: {versions.before} -> {versions.now}, the same without the text")
        console.print(f"{module}: withdrawn: {', '.join(versions.withdrawn)}")
    console.print("no program and no dataset of the tenant contains the traces any more")


def _print_left(phoenix_endpoint: str, trace_ids: Sequence[str], quoting_runs: Sequence[str]) -> None:
    console.print("not done by this command:")
    for trace_id in trace_ids:
        console.print(
            f"- the trace itself: select and delete it on its project's page in Phoenix, or "
            f"curl -X DELETE {escape(phoenix_endpoint)}/v1/traces/{trace_id}",
        )
    runs = f"these do: {', '.join(quoting_runs)}" if quoting_runs else "none was found by its words"
    console.print(f"- reports of earlier runs in Dagster may quote the text ({runs}): delete those runs there")
    console.print("- backups, and old object versions where the artifacts' bucket keeps them, until they expire")
