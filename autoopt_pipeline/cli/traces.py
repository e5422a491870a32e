"""`autoopt traces`: shows a tenant's spans as a run reads them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console, open_connections
from autoopt_pipeline.cli.options import Full, Json
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError, InvalidConfig, UnknownModule
from autoopt_pipeline.modules.catalog import get_module, modules
from autoopt_pipeline.modules.redaction import Redact, load_redaction
from autoopt_pipeline.scheduling.conditions import learnt_from
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import newest_version
from autoopt_pipeline.text import one_line
from autoopt_pipeline.traces.inspect import AsRead, Survey, as_read, survey

if TYPE_CHECKING:
    from autoopt_pipeline.modules.spec import Label, ModuleSpec
    from autoopt_pipeline.traces.reader import Collected

app = typer.Typer(help="Show a tenant's spans in Phoenix as a run reads them.", no_args_is_help=True)


@dataclass(frozen=True)
class _Reader:
    """Reads a tenant's spans of the lookback, as a run that starts now would."""

    connections: Connections
    config: RoutingConfigUnified
    redact: Redact
    start: datetime
    end: datetime

    def window(self) -> dict[str, str]:
        return {"start": self.start.isoformat(), "end": self.end.isoformat()}

    def read(self, name: str) -> "tuple[ModuleSpec, tuple[Label, ...], Collected]":
        from autoopt_pipeline.traces.reader import collect

        spec = get_module(name)
        labels = labels_of(spec, self.config)
        collected = collect(self.connections.phoenix, self.config.tenant_id, spec, start=self.start, end=self.end)
        return spec, labels, collected.without(frozenset(self.config.excluded_traces))

    def read_each(
        self, names: Iterable[str], errors: dict[str, AutooptError]
    ) -> "Iterator[tuple[str, tuple[ModuleSpec, tuple[Label, ...], Collected]]]":
        """Read each module's spans. A failure goes to `errors`, and does not stop the other modules."""
        for name in names:
            try:
                spans = self.read(name)
            except (UnknownModule, InvalidConfig) as e:
                errors[name] = e
            else:
                yield name, spans


def _reader(tenant: str) -> _Reader:
    connections = open_connections()
    entry = newest_version(connections.configs, tenant)
    config = entry.parse()
    end = datetime.now(UTC) - timedelta(seconds=connections.settings.settling_seconds)
    start = learnt_from(config, until=end, begins=entry.since)
    return _Reader(connections, config, load_redaction(connections.settings.redaction), start, end)


@app.command()
def stats(tenant: TenantId, json: Json = False) -> None:
    """Count each module's decisions, examples and labels in the lookback, and its unusable spans by reason.

    Exit status 2 if a module's spans cannot be read.
    """
    reader = _reader(tenant)
    surveys: dict[str, Survey] = {}
    errors: dict[str, AutooptError] = {}
    for name, (spec, labels, collected) in reader.read_each(reader.config.modules, errors):
        surveys[name] = survey(collected.decisions, spec.build_examples(labels, collected.decisions, reader.redact))
    others = _other_span_names(reader)
    if json:
        console.print_json(
            data={
                "tenant": tenant,
                "project": project_name(tenant),
                "window": reader.window(),
                "modules": {name: _as_json(asdict(counts)) for name, counts in surveys.items()},
                "errors": {name: str(error) for name, error in errors.items()},
                "other_span_names": others,
            }
        )
    else:
        _print_stats(reader, surveys, errors, others)
    if errors:
        raise typer.Exit(2)


@app.command()
def sample(
    tenant: TenantId,
    module: Annotated[str | None, typer.Option(help="Only this module [default: all modules of the tenant].")] = None,
    number: Annotated[int, typer.Option("-n", "--number", min=1, help="Decisions of each module.")] = 5,
    full: Full = False,
    json: Json = False,
) -> None:
    """Show the newest decisions as a run reads them: inputs, answer, right answer and its source.

    Exit status 2 if a module's spans cannot be read.
    """
    reader = _reader(tenant)
    shown: dict[str, list[AsRead]] = {}
    errors: dict[str, AutooptError] = {}
    for name, (spec, labels, collected) in reader.read_each([module] if module else reader.config.modules, errors):
        shown[name] = as_read(spec, labels, collected.decisions, reader.redact, newest=number)
    if module and errors:
        raise errors[module]
    if json:
        console.print_json(
            data={
                "tenant": tenant,
                "project": project_name(tenant),
                "window": reader.window(),
                "modules": {name: [_decision_as_dict(read) for read in decisions] for name, decisions in shown.items()},
                "errors": {name: str(error) for name, error in errors.items()},
            }
        )
    else:
        _print_sample(shown, errors, full=full)
    if errors:
        raise typer.Exit(2)


def _print_sample(shown: Mapping[str, list[AsRead]], errors: Mapping[str, AutooptError], *, full: bool) -> None:
    for name, decisions in shown.items():
        console.print(f"[bold]{escape(name)}[/bold]" + ("" if decisions else ": no decision in the lookback"))
        for read in decisions:
            console.print(f"  {read.decision.time:%Y-%m-%d %H:%M:%S} UTC  trace {escape(read.decision.trace_id)}")
            for title, text in _describe(read):
                console.print(f"    {title}: {escape(one_line(text, full=full))}")
    _print_errors(errors)


def _print_errors(errors: Mapping[str, AutooptError]) -> None:
    for name, error in errors.items():
        console.print(f"[red]error[/red] {escape(name)}: {escape(str(error))}")


def _other_span_names(reader: _Reader) -> dict[str, int] | None:
    """Counts of spans that no installed module reads, by name; None if the tenant has no project."""
    phoenix = reader.connections.phoenix
    project = phoenix.project(project_name(reader.config.tenant_id))
    if project is None:
        return None
    known = {spec.contract.span_name for spec in modules().values()}
    return phoenix.other_span_names(project.id, known, start=reader.start, end=reader.end)


def _print_stats(
    reader: _Reader,
    surveys: Mapping[str, Survey],
    errors: Mapping[str, AutooptError],
    others: Mapping[str, int] | None,
) -> None:
    project = project_name(reader.config.tenant_id)
    console.print(f"{project}, {reader.start:%Y-%m-%d %H:%M:%S} to {reader.end:%Y-%m-%d %H:%M:%S} UTC")
    counted = ("decisions", "examples", "human", "judge", "outcome", "drawn at random")
    rows = [
        (escape(name), *map(str, (counts.decisions, counts.examples, *counts.provenance.values(), counts.independent)))
        for name, counts in surveys.items()
    ]
    print_table(("module", *counted), rows, right=counted)
    for name, counts in surveys.items():
        console.print(f"[bold]{escape(name)}[/bold]")
        for title, text in _details(counts):
            console.print(f"  {title}: {escape(one_line(text, full=True))}")
    _print_errors(errors)
    if others is None:
        console.print(f"Phoenix has no project {project}")
    elif others:
        console.print(f"spans that no module reads: {escape(one_line(_counts(others), full=True))}")


def _details(counts: Survey) -> Iterator[tuple[str, str]]:
    if counts.oldest and counts.newest:
        yield "from", f"{counts.oldest:%Y-%m-%d %H:%M:%S} to {counts.newest:%Y-%m-%d %H:%M:%S} UTC"
    if counts.labels:
        yield "right answers", _counts(counts.labels)
    if counts.unusable:
        yield (
            f"not usable ({counts.malformed} malformed)",
            "; ".join(f"{count} {reason}" for reason, count in counts.unusable.items()),
        )
    if counts.redacted:
        yield "redacted", str(counts.redacted)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _describe(read: AsRead) -> Iterator[tuple[str, str]]:
    for name, text in read.inputs.items():
        yield escape(name), text or "-"
    yield "answered", ", ".join(f"{name} {text or '-'}" for name, text in read.answer.items())
    if read.example:
        drawn = ", drawn at random" if read.example.independent else ""
        yield "right", f"{read.example.label} ({read.example.provenance.value}{drawn})"
    else:
        yield "not usable", read.unusable or "?"


def _decision_as_dict(read: AsRead) -> dict[str, Any]:
    example = read.example
    return {
        "trace_id": read.decision.trace_id,
        "span_id": read.decision.span_id,
        "time": read.decision.time.isoformat(),
        "inputs": read.inputs,
        "answer": read.answer,
        "right": dict(example.right) if example else None,
        "label": example.label if example else None,
        "provenance": example.provenance.value if example else None,
        "independent": example.independent if example else None,
        "unusable": read.unusable,
    }


def _as_json(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
