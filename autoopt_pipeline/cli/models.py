"""`autoopt models`: which language models tenants use, and the replacement of one by another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_tenant
from autoopt_pipeline.cli.confirmation import Yes, ask
from autoopt_pipeline.cli.context import console, current_user, no_tenants, open_connections
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.output import print_changes
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError, InvalidConfig, LMNotConfigured
from autoopt_pipeline.lm.choice import answering_models
from autoopt_pipeline.registry.records import Manifest
from autoopt_pipeline.registry.version_store import read_manifests, read_pointers
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.checking import check_names
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields
from autoopt_pipeline.tenants.diff import changed_fields
from autoopt_pipeline.tenants.model_replacement import ANSWERING, fields_naming, named_models, with_model_replaced
from autoopt_pipeline.tenants.store import unknown_tenant, write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import did_you_mean

app = typer.Typer(help="Show the language models of the tenants, and replace one by another.")

Tenants = Annotated[
    list[str] | None,
    typer.Option("--tenant", help="Only this tenant; can be repeated.", autocompletion=complete_tenant),
]


@dataclass(frozen=True)
class _ModuleModels:
    """The models of one tenant's module. `asked` were those of the active version when it was proven.

    `named` are those that it names, so that an application has to give them. `own` is the tenant's own model, and
    `candidates` are its others. `error` is why they are unknown.
    """

    tenant: str
    module: str
    version: str | None = None
    asked: str = ""
    named: Sequence[str] = ()
    own: str = ""
    candidates: Sequence[str] = ()
    error: str = ""

    @property
    def retired(self) -> list[str]:
        """The models that the version names and the tenant no longer has."""
        return [name for name in self.named if name not in (self.own, *self.candidates)]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, tenant: Tenants = None, json: Json = False) -> None:
    """List which language model each active version was proven with, and which ones its tenant has now."""
    if context.invoked_subcommand:
        return
    connections = open_connections()
    rows = _models_in_use(connections, _chosen(connections, tenant))
    if json:
        fields = ("tenant", "module", "version", "asked", "named", "own", "candidates", "retired", "error")
        console.print_json(data={"modules": [{name: getattr(row, name) or None for name in fields} for row in rows]})
        return
    if not rows:
        console.print(no_tenants(connections.configs))
        return
    print_table(
        ("tenant", "module", "version", "proven with", "own model", "candidate models"),
        [
            (
                escape(row.tenant),
                escape(row.module),
                row.version or BASELINE,
                escape(row.asked),
                escape(row.own),
                escape(", ".join(row.candidates)),
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.error:
            console.print(f"[red]{escape(row.error)}[/red]")
        if row.retired:
            console.print(
                f"[red]{escape(row.tenant)}/{escape(row.module)}[/red]: {row.version} asks "
                f"{escape(', '.join(row.retired))}, which the tenant no longer has"
            )


@app.command()
def replace(
    old: Annotated[str, typer.Argument(help="The model that is named now, e.g. openai/gpt-4o-mini.")],
    new: Annotated[str, typer.Argument(help="The model that takes its place.")],
    tenant: Tenants = None,
    yes: Annotated[bool, Yes] = False,
) -> None:
    """Replace a model in all configurations that name it. Modules whose programs ask it are due at once.

    The next run asks the new model, and a version is promoted only as ever: if it is proven better. The new model keeps
    the endpoint, the key's variable and the limits of the old one, but not its price. Asks for confirmation; without a
    terminal, --yes is required. After an error it can be repeated.
    """
    connections = open_connections()
    stored = _chosen(connections, tenant)
    now = datetime.now(UTC).replace(microsecond=0)
    planned = {name: plan for name, entry in stored.items() if (plan := _planned(entry, old, new, now))}
    variables = [] if tenant else _variables(connections.settings, old)
    if not planned and not variables:
        known = {model for entry in stored.values() for model in _named(entry)}
        raise InvalidConfig(f"no configuration names {old[:60]!r}", f"{did_you_mean(old, known)}'autoopt models' lists")
    for name, (before, after) in planned.items():
        console.print(f"{escape(name)}:")
        print_changes(changed_fields(before.model_dump(mode="json"), after.model_dump(mode="json")))
    if planned:
        ask(f"Replace {old} by {new} in the configurations of {len(planned)} tenants", yes=yes)
    for name, (before, after) in planned.items():
        version = write_config(connections.configs, after, actor=current_user(), expected_version=stored[name].version)
        due = "its modules are due" if ANSWERING.intersection(fields_naming(before, old)) else "no module is due"
        console.print(f"{escape(name)}: configuration version {version}, and {due}")
    for variable in variables:
        console.print(
            f"not done by this command: set {variable}={escape(new)}, with its endpoint, key and price, where sensors "
            "and runs execute; all modules of tenants without a model of their own are due then"
        )
    for row in _models_in_use(connections, stored):
        if old in row.named:
            console.print(
                f"{escape(row.tenant)}/{escape(row.module)}: {row.version} asks {escape(old)} until another version is "
                f"active; give it in Serving(lms=...) until then, or another model under this name"
            )


def _chosen(connections: Connections, tenants: Sequence[str] | None) -> dict[str, StoredConfig]:
    """Return these tenants' configurations, or all. Raises `UnknownTenant`."""
    current = connections.configs.current()
    for tenant in tenants or ():
        if tenant not in current:
            raise unknown_tenant(tenant, current)
    return {name: entry for name, entry in sorted(current.items()) if not tenants or name in tenants}


def _planned(
    entry: StoredConfig, old: str, new: str, now: datetime
) -> tuple[RoutingConfigUnified, RoutingConfigUnified] | None:
    """Return a configuration before and after the replacement, or None if it does not name the model."""
    try:
        before = entry.parse()
    except InvalidConfig as e:
        console.print(f"[red]left out[/red] {escape(str(e))}")
        return None
    if not fields_naming(before, old):
        return None
    after = with_model_replaced(before, old, new, now=now)
    check_names(after, chosen_fields(before))
    return before, after


def _named(entry: StoredConfig) -> list[str]:
    try:
        return [name for names in named_models(entry.parse()).values() for name in names]
    except InvalidConfig:
        return []


def _variables(settings: Settings, model: str) -> list[str]:
    """Return the environment variables that name a model."""
    named = {"AUTOOPT_LM": settings.lm, "AUTOOPT_TEACHER_LM": settings.teacher_lm}
    return [variable for variable, name in named.items() if name == model]


def _models_in_use(connections: Connections, stored: Mapping[str, StoredConfig]) -> list[_ModuleModels]:
    configs: dict[str, RoutingConfigUnified] = {}
    rows = []
    for tenant, entry in stored.items():
        try:
            configs[tenant] = entry.parse()
        except InvalidConfig as e:
            rows.append(_ModuleModels(tenant, "", error=str(e)))
    places = [(tenant, module) for tenant, config in configs.items() for module in config.modules]
    pointers = read_pointers(connections.files, places)
    versions = {
        place: pointer.version
        for place, pointer in pointers.items()
        if pointer and not isinstance(pointer, AutooptError) and pointer.version
    }
    manifests = read_manifests(connections.files, versions)
    for place in places:
        pointer = pointers[place]
        found = pointer if isinstance(pointer, AutooptError) else manifests.get(place)
        own, candidates = _models_of(configs[place[0]], connections.settings)
        rows.append(
            _ModuleModels(
                *place,
                version=versions.get(place),
                asked=found.lm if isinstance(found, Manifest) else "",
                named=found.named_lms if isinstance(found, Manifest) else (),
                own=own,
                candidates=candidates,
                error=str(found) if isinstance(found, AutooptError) else "",
            )
        )
    return sorted(rows, key=lambda row: (row.tenant, row.module))


def _models_of(config: RoutingConfigUnified, settings: Settings) -> tuple[str, Sequence[str]]:
    try:
        own, *candidates = answering_models(config, settings)
    except LMNotConfigured:
        return "none", [lm.model for lm in config.candidate_lms]
    return own, candidates
