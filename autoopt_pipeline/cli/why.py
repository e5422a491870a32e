"""`autoopt why`: the story of one module, in sentences."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.artifacts.moves import watch_since
from autoopt_pipeline.cli.context import connections, console, instance, unknown_tenant
from autoopt_pipeline.cli.programs import BASELINE, ModuleName, percent
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.cli.times import ago, duration
from autoopt_pipeline.cli.watches import between
from autoopt_pipeline.modules.registry import get_module
from autoopt_pipeline.optimization.plan import Reason

if TYPE_CHECKING:
    from autoopt_pipeline.orchestration.standing import Story


def why(
    tenant: TenantId,
    module: ModuleName,
    json: Annotated[
        bool, typer.Option("--json", help="Print the facts as JSON; docs/trigger-and-status.md lists them.")
    ] = False,
) -> None:
    """Tell why a module is or is not optimized: its configuration, what happened, what serves, what comes next.

    Exit status 2 when the decision is an error.
    """
    from autoopt_pipeline.orchestration.standing import module_story

    get_module(module)
    parts = connections()
    stored = parts.configs.current()
    if tenant not in stored:
        raise unknown_tenant(tenant, stored)
    now = datetime.now(UTC)
    with instance() as opened:
        story = module_story(stored[tenant], module, opened, parts, now=now)
    if json:
        console.print_json(data={"now": now.isoformat(), **story.as_dict()})
    else:
        console.print(f"[bold]{escape(tenant)}/{escape(module)}[/]")
        for title, text in _sentences(story, now):
            console.print(f"[dim]{title:>11}[/]  {escape(text)}", soft_wrap=True)
    if story.standing.decision.reason is Reason.ERROR:
        raise typer.Exit(2)


def _sentences(story: "Story", now: datetime) -> Iterator[tuple[str, str]]:
    standing, decision = story.standing, story.standing.decision
    yield "now", f"{decision.reason.value}: {decision.detail}"
    yield "configured", _configured(story)
    yield "last", _last(story, now)
    if standing.attempts.failures:
        yield "failed", f"{standing.attempts.failures} in a row since then"
    for failed in story.failures:
        yield "", f"{failed.at:%Y-%m-%d %H:%M:%S} UTC, run {failed.run_id}: {failed.cause}"
    yield "needed", _needed(story, now)
    yield "serves", _serves(story, now)
    if watch := watch_since(story.moved):
        yield "watched", f"{between(watch)}; 'autoopt watches {standing.tenant_id} {standing.module}' says how they do"
    if trial := story.trial:
        so_far = (
            f"on {trial.cases} so far it has {percent(trial.candidate_score)} %, and what it would replace "
            f"{percent(trial.incumbent_score)} %"
            if trial.cases
            else "none has come yet"
        )
        yield (
            "trial",
            f"{trial.version} may be better, and waits for new held-out traces since {ago(trial.since, now)}: {so_far}",
        )
    for event in story.events:
        details = ", ".join(f"{name} {value}" for name, value in event.details.items())
        told = "; ".join(part for part in (event.reason, details) if part)
        yield event.kind.replace("_", " "), f"{event.at:%Y-%m-%d %H:%M:%S} UTC: {told}"


def _configured(story: "Story") -> str:
    config, module = story.config, story.standing.module
    interval = timedelta(seconds=config.interval_seconds(module))
    return (
        f"version {story.config_version}: at most every {duration(interval)}, "
        f"from {config.min_samples(module)} new traces and annotations on, promotion {config.promotion_mode}"
    )


def _last(story: "Story", now: datetime) -> str:
    last = story.last
    if last is None:
        return "never optimized"
    told = f"{last.verdict or 'reported by hand'}, {ago(last.at, now)}"
    if last.reason:
        told += f": {last.reason}"
    if last.score_before is not None:
        told += f"; score {percent(last.score_before)} -> {percent(last.score_after)} %"
    if last.version:
        told += f"; version {last.version}"
    if last.lm_calls is not None:
        told += f"; {last.lm_calls} LM calls"
    told += f"; run {last.run_id}" if last.run_id else ""
    if last.verdict == "awaiting_approval" and last.version:
        told += f"; approve it with 'autoopt promote {story.standing.tenant_id} {story.standing.module} {last.version}'"
    return told


def _needed(story: "Story", now: datetime) -> str:
    decision = story.standing.decision
    if decision.reason is Reason.DUE:
        return "nothing: the sensor launches a run at its next look"
    parts = [f"next look at it {ago(decision.until, now)}"] if decision.until else []
    if decision.evidence and decision.need:
        parts.append(f"{decision.evidence.total} of {decision.need} new traces and annotations")
    if story.due_in:
        parts.append(
            f"as traces came in the last day ({story.traces_per_day}), that is in about {duration(story.due_in)}"
        )
    return "; ".join(parts) or f"that this changes: {decision.detail}"


def _serves(story: "Story", now: datetime) -> str:
    standing, moved = story.standing, story.moved
    if standing.trouble:
        return standing.trouble
    told = standing.active or BASELINE
    if standing.active_score is not None:
        told += f", {percent(standing.active_score)} % on the held-out traces that decided"
    if moved:
        told += f"; since {ago(moved.at, now)}, moved by {moved.by}: {moved.why}"
    return told
