"""`autoopt forget`: taking a trace's text out of everything that was learnt from it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import connections, console, dagster_home, instance, who
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import UnknownTrace
from autoopt_pipeline.registry.audit_log import record_action
from autoopt_pipeline.registry.version_store import VersionStore, modules_of
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.config import valid_trace_id

if TYPE_CHECKING:
    from autoopt_pipeline.erasure.programs import ForgottenText
from autoopt_pipeline.tenants.store import unknown_tenant


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
    from autoopt_pipeline.erasure.programs import ForgottenText
    from autoopt_pipeline.modules.redaction import load_redaction

    validate_tenant_id(tenant)
    parts = connections(patient=True)
    trace_ids = [_trace_id(each) for each in traces]
    history = parts.configs.history(tenant)
    if not history:
        raise unknown_tenant(tenant, parts.configs.current())
    queries, span_ids = _look_up(parts, tenant, trace_ids, query or [])
    text = ForgottenText(queries, load_redaction(parts.settings.redaction))
    programs = modules_of(parts.files, tenant)

    # First of all nothing must learn it again: whatever begins from now on does not.
    if history[-1].document is None:
        console.print(
            f"{tenant} is removed, so nothing is learnt; delete the traces in Phoenix before you add it again"
        )
    else:
        _never_learn_again(parts, tenant, trace_ids, programs, text)
    running = _run_under_way(tenant)
    _forget_in_datasets(parts, tenant, programs, span_ids, text)
    _forget_in_programs(programs, text)
    for module in programs:
        module.drop_kept_answers()
    told = f"traces {', '.join(trace_ids)}: in no program and no dataset any more"
    record_action(parts.files, actor=who(), what="erased", tenant_id=tenant, module="", text=told)
    console.print("no program and no dataset of the tenant holds the text any more")
    _say_what_is_left(parts, trace_ids, _runs_saying(tenant, text, trace_ids))
    if running:
        console.print(
            f"[red]run {running} was under way and may have read the traces before:[/red] "
            "repeat this command when it has ended"
        )
        raise typer.Exit(2)


def _trace_id(text: str) -> str:
    try:
        return valid_trace_id(text)
    except ValueError as e:
        raise UnknownTrace(str(e), "copy it from the trace's page in Phoenix") from None


def _look_up(
    parts: Connections, tenant: str, trace_ids: Sequence[str], given: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What the traces were asked, and in which spans. Raises `UnknownTrace` where nobody says."""
    from autoopt_pipeline.modules.catalog import modules
    from autoopt_pipeline.traces.lookup import find_asked

    asked = find_asked(parts.phoenix, tenant, modules().values(), trace_ids)
    known = {each.trace_id for each in asked}
    missing = [trace_id for trace_id in trace_ids if trace_id not in known]
    if missing and not given:
        raise UnknownTrace(
            f"Phoenix {parts.phoenix.endpoint} has nothing that was asked in trace {', '.join(missing)} of {tenant}",
            "give its text with --query, once for each text",
        )
    for trace_id in missing:
        console.print(f"{trace_id}: Phoenix has nothing that was asked in it, so the text given is looked for")
    return [*given, *(each.query for each in asked)], [each.span_id for each in asked]


def _never_learn_again(
    parts: Connections,
    tenant: str,
    trace_ids: Sequence[str],
    programs: Sequence[VersionStore],
    text: "ForgottenText",
) -> None:
    """Enter it in the configuration, and have the modules retrained whose active program learnt it."""
    from autoopt_pipeline.erasure.programs import never_learn_again, versions_with

    retrain = []
    for each in programs:
        active = each.active()
        if active and active.version in versions_with(each, text):
            retrain.append(each.module)
    version = never_learn_again(parts.configs, tenant, trace_ids, retrain, now=datetime.now(UTC), who=who())
    written = f"configuration version {version}" if version else "the configuration says so already"
    console.print(f"{tenant}: never learnt from again: {', '.join(trace_ids)}; {written}")


def _forget_in_datasets(
    parts: Connections, tenant: str, programs: Sequence[VersionStore], span_ids: Sequence[str], text: "ForgottenText"
) -> None:
    from autoopt_pipeline.modules.catalog import module_names
    from autoopt_pipeline.traces.experiments import forget_in_datasets

    for module in sorted({*module_names(), *(each.module for each in programs)}):
        found = forget_in_datasets(parts.phoenix, tenant, module, span_ids=span_ids, queries=text.queries)
        if found:
            console.print(f"{module}: {found} examples stood in its Phoenix dataset, which is deleted")


def _forget_in_programs(programs: Sequence[VersionStore], text: "ForgottenText") -> None:
    from autoopt_pipeline.erasure.programs import forget_in_programs

    for each in programs:
        cleaned = forget_in_programs(each, text, who=who())
        if cleaned.now:
            console.print(f"{each.module}: {cleaned.before} -> {cleaned.now}, the same without the text")
        if cleaned.withdrawn:
            console.print(f"{each.module}: withdrawn: {', '.join(cleaned.withdrawn)}")


def _run_under_way(tenant: str) -> str | None:
    """A run of the tenant that has begun and not ended; it may have read the configuration as it was."""
    if dagster_home() is None:
        console.print("no Dagster instance here: repeat this command when a run that is under way now has ended")
        return None
    from autoopt_pipeline.modules.catalog import module_names
    from autoopt_pipeline.run_history.runs import unfinished_runs

    with instance() as opened:
        return unfinished_runs(opened, module_names()).get(tenant)


def _runs_saying(tenant: str, text: "ForgottenText", trace_ids: Sequence[str]) -> list[str]:
    """Runs whose reports hold the text, or link to a trace."""
    if dagster_home() is None:
        return []
    from autoopt_pipeline.erasure.run_reports import runs_saying
    from autoopt_pipeline.modules.catalog import module_names

    def said(report: str) -> bool:
        return text.occurs_in(report) or any(trace_id in report for trace_id in trace_ids)

    with instance() as opened:
        return runs_saying(opened, tenant, module_names(), said)


def _say_what_is_left(parts: Connections, trace_ids: Sequence[str], runs: Sequence[str]) -> None:
    console.print("not done by this command:")
    for trace_id in trace_ids:
        console.print(
            f"- the trace itself: select and delete it on its project's page in Phoenix, or "
            f"curl -X DELETE {escape(parts.phoenix.endpoint)}/v1/traces/{trace_id}",
        )
    found = f"these do: {', '.join(runs)}" if runs else "none was found by its words"
    console.print(f"- reports of earlier runs in Dagster may quote the text ({found}): delete those runs there")
    console.print("- backups, and old object versions where the artifacts' bucket keeps them, until they expire")
