"""`autoopt backtest`: plays the loop over a tenant's past traces."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_module
from autoopt_pipeline.cli.config import fields_of
from autoopt_pipeline.cli.context import console, open_connections
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.progress import viewing
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.errors import InvalidConfig, InvalidInput
from autoopt_pipeline.lm.progress import Progress
from autoopt_pipeline.modules.catalog import get_module, modules
from autoopt_pipeline.registry.backtests import MOST_NIGHTS, Backtest, Night, save_backtest
from autoopt_pipeline.scheduling.conditions import why_off
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.status.backtest_rows import rows_of, summary_of, variants_of
from autoopt_pipeline.tenants.checking import check_names
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, with_field
from autoopt_pipeline.tenants.store import newest_version

if TYPE_CHECKING:
    from autoopt_pipeline.clients import Connections
    from autoopt_pipeline.tenants.stores.base import StoredConfig

ENDED_EARLY_STATUS = 1


def backtest(
    tenant: TenantId,
    module: Annotated[
        list[str] | None,
        typer.Option(help="Module; can be repeated [default: all that are not off].", autocompletion=complete_module),
    ] = None,
    days: Annotated[int, typer.Option(help="Past days to play, one night each.")] = 90,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE as in 'autoopt config set', to play beside the tenant's own settings."),
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option(help="LM calls for the whole backtest [default: the tenant's budget.max_lm_calls].")
    ] = None,
    json: Json = False,
) -> None:
    """Show what the loop would have done in the past: when it would have run, and what it would have promoted.

    Changes nothing of the tenant. The result is stored for the dashboard.

    Exit status 0: played to the end. 1: it ended early, and the nights before are kept. 2: an error.
    """
    if not 1 <= days <= MOST_NIGHTS:
        raise InvalidInput(f"--days is {days}", f"give a number from 1 to {MOST_NIGHTS}")
    if max_calls is not None and max_calls < 0:
        raise InvalidInput(f"--max-calls is {max_calls}", "give a number from 0 on")
    connections = open_connections(patient=True)
    entry = newest_version(connections.configs, tenant)
    own = entry.parse()
    fields = fields_of(changes or [])
    configs = [own, *([_changed(own, fields)] if fields else [])]
    chosen = [get_module(name).name for name in module or []] or _enabled(configs)
    allowed = own.budget.max_lm_calls if max_calls is None else max_calls
    backtests = _play(connections, entry, configs, fields, chosen, days, allowed)
    for each in backtests:
        save_backtest(connections.files, each)
    if json:
        console.print_json(data={"tenant": tenant, "backtests": [each.model_dump(mode="json") for each in backtests]})
    else:
        for each in backtests:
            _print(each)
    if any(each.ended for each in backtests):
        raise typer.Exit(ENDED_EARLY_STATUS)


def _changed(config: RoutingConfigUnified, fields: Mapping[str, str]) -> RoutingConfigUnified:
    before = chosen_fields(config)
    for path, value in fields.items():
        config = with_field(config, path, value)
    check_names(config, before)
    return config


def _enabled(configs: Sequence[RoutingConfigUnified]) -> list[str]:
    """The modules that would be on under any of these settings if the tenant were."""
    from autoopt_pipeline.optimization.backtest import turned_on

    names = [name for name in modules() if any(why_off(turned_on(config), name) is None for config in configs)]
    if not names:
        raise InvalidConfig(f"tenant {configs[0].tenant_id}: no module is enabled", "name one with --module")
    return names


def _play(
    connections: "Connections",
    entry: "StoredConfig",
    configs: Sequence[RoutingConfigUnified],
    fields: Mapping[str, str],
    chosen: Sequence[str],
    days: int,
    max_calls: int,
) -> list[Backtest]:
    from autoopt_pipeline.optimization.backtest import NIGHT, Allowance, nights_until, open_scenarios, play_all

    at = datetime.now(UTC)
    nights, allowance, began = nights_until(at.replace(microsecond=0), days), Allowance(max_calls), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="autoopt-backtest-") as folder, viewing() as view:
        done = 0

        def draw(step: str) -> None:
            seconds, calls, tokens = time.monotonic() - began, allowance.calls, allowance.tokens
            shown = Progress(phase=step, done=done, total=days, calls=calls, tokens=tokens, seconds=round(seconds, 1))
            if view.show:
                view.show(entry.tenant_id, shown)

        def draw_night(number: int) -> None:
            nonlocal done
            done = number
            draw("nights")

        def draw_step(progress: Progress | None) -> None:
            draw(f"nights, now {progress.phase[:200]}" if progress else "nights")

        scenarios = open_scenarios(connections, entry, configs, chosen, nights, Path(folder))
        found, ended = play_all(
            scenarios, nights, allowance, show=draw_night, on_progress=draw_step if view.show else None
        )
    past = scenarios[0].past
    return [
        Backtest(
            at=at,
            tenant_id=entry.tenant_id,
            module=name,
            start=nights[0] - NIGHT,
            end=nights[-1],
            traces=len(past[name].spans.own),
            reviews=past[name].reviews,
            max_calls=max_calls,
            own=found[0][name],
            changes={name: scrub(value) for name, value in fields.items()},
            other=found[1][name] if fields else None,
            ended=ended,
        )
        for name in chosen
    ]


def _print(result: Backtest) -> None:
    variants = variants_of(result)
    played = len(result.own.nights)
    console.print(
        f"[bold]{escape(result.tenant_id)}/{escape(result.module)}[/]: {played} night{'s' * (played != 1)} until "
        f"{result.end:%Y-%m-%d %H:%M} UTC, with {result.traces} traces and {result.reviews} reviews in Phoenix"
    )
    headers = list(map(escape, variants))
    nights = [[row.dates, *(_cell(night) if night else "" for night in row.last)] for row in rows_of(result)]
    print_table(["night", *headers], nights)
    totals = [summary_of(played) for played in variants.values()]
    print_table(["", *headers], [[name, *(escape(each[name]) for each in totals)] for name in totals[0]])
    if result.ended:
        console.print(f"[yellow]ended early[/]: {escape(result.ended)}")


def _cell(night: Night) -> str:
    if not night.ran:
        return f"[dim]{escape(night.decision)}[/]: {escape(night.detail)}"
    if night.failed:
        return f"[red]failed[/]: {escape(night.failed)}"
    lines = [f"[bold]{escape(night.verdict or '')}[/]: {escape(night.reason)}"]
    if night.version:
        lines.append(f"version {escape(night.version)}")
    if night.reviews_asked:
        lines.append(f"{night.reviews_asked} reviews asked for, of which {night.reviews_needed} can decide")
    if night.lm_calls:
        lines.append(f"{night.lm_calls:,} LM calls")
    return "\n".join(lines)
