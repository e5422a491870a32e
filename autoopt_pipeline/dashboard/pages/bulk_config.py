"""The configurations of all tenants: a list to search, adding a tenant, and changing one field of many tenants."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

from starlette.authentication import requires
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from autoopt_pipeline.dashboard.bulk_change import PlannedChange, field_paths, plan_change, wrong_value
from autoopt_pipeline.dashboard.context import Dashboard, dashboard_of
from autoopt_pipeline.dashboard.flash import say
from autoopt_pipeline.dashboard.paging import PAGE, page_number, pages_of
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import ConfigConflict, ConfigStoreUnavailable, InvalidConfig
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.diff import may_be_secret
from autoopt_pipeline.tenants.lifecycle import add_tenant, new_tenant
from autoopt_pipeline.tenants.store import write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig

LISTED = 200
"""The most tenants that a bulk change lists under each heading. The counts include all."""

_FORM_CHARS = 900_000
"""The most characters of tenants and versions in a form, whose limit is a million bytes."""

_PATIENCE_SECONDS = 20.0
"""How long one request saves, because browsers and proxies do not wait for ever."""

STATES = {"on": "optimized by itself", "off": "turned off", "invalid": "not valid"}


@dataclass(frozen=True)
class Query:
    """A filter of tenants: `text` is a part of the id, and empty fields match everything. `page` counts from 1."""

    text: str = ""
    state: str = ""
    page: int = 1

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> "Query":
        """Read a query from a URL or a form. Invalid values count as empty."""
        state = str(params.get("state", ""))
        return cls(
            text=str(params.get("text", "")).strip()[:200],
            state=state if state in STATES else "",
            page=page_number(str(params.get("page", ""))),
        )

    def encode(self, **changes: Any) -> str:
        return urlencode({name: value for name, value in vars(replace(self, **changes)).items() if value})


@dataclass(frozen=True)
class Row:
    """A tenant in the list. `config` is None when it is not valid; then `wrong` is the reason."""

    entry: StoredConfig
    config: RoutingConfigUnified | None
    wrong: str = ""


def matching(configs: Mapping[str, StoredConfig], query: Query) -> list[StoredConfig]:
    """The tenants that match, by id. Pure."""
    named = [entry for tenant, entry in sorted(configs.items()) if query.text.lower() in tenant.lower()]
    return [entry for entry in named if not query.state or _state(_row(entry)) == query.state]


def _row(entry: StoredConfig) -> Row:
    try:
        return Row(entry, entry.parse())
    except InvalidConfig as e:
        return Row(entry, None, str(e))


def _state(row: Row) -> str:
    if row.config is None:
        return "invalid"
    return "on" if row.config.enable_auto_optimization else "off"


def list_page(request: Request) -> Response:
    dashboard, query = dashboard_of(request), Query.read(request.query_params)
    configs = dashboard.configs(request.user)
    entries = matching(configs, query)
    pages = pages_of(len(entries))
    query = replace(query, page=min(query.page, pages))
    first = (query.page - 1) * PAGE
    return render(
        request,
        "configurations.html",
        query=query,
        states=STATES,
        tenants=len(configs),
        count=len(entries),
        pages=pages,
        first=first + 1,
        rows=[_row(entry) for entry in entries[first : first + PAGE]],
        fields=field_paths(),
    )


@requires("operator")
def add_page(request: Request) -> Response:
    return render(request, "configuration_add.html", tenant="", agents="", wrong="")


def add(request: Request, form: FormData) -> Response:
    """Write the first configuration of a new tenant and register its partition."""
    dashboard, user = dashboard_of(request), request.user
    tenant, agents = str(form.get("tenant", "")).strip(), str(form.get("agents", ""))
    lines = [line.strip() for line in agents.splitlines() if line.strip()]
    try:
        config = new_tenant(tenant, lines, where="new tenant")
        if not user.sees(tenant):
            raise InvalidConfig(f"{tenant} is none of the tenants that you may see", "; ".join(user.tenants))
        add_tenant(dashboard.parts.configs, config, actor=user.name)
    except (InvalidConfig, ConfigConflict) as e:
        status = HTTPStatus.CONFLICT if isinstance(e, ConfigConflict) else HTTPStatus.BAD_REQUEST
        return render(request, "configuration_add.html", status=status, tenant=tenant, agents=agents, wrong=str(e))
    register_tenant(dashboard.instance, tenant)
    dashboard.statuses.refresh_tenant(tenant)
    say(request, f"{tenant} was added.")
    return RedirectResponse(f"/tenants/{quote(tenant, safe=':')}/configuration", HTTPStatus.SEE_OTHER)


@dataclass(frozen=True)
class Selection:
    """The tenants of a bulk change: those that were ticked, or all that match a query."""

    query: Query | None
    ticked: tuple[str, ...] = ()

    @classmethod
    def read(cls, form: FormData) -> "Selection":
        if form.get("which") == "all":
            return cls(Query.read({name: form.get(name, "") for name in ("text", "state")}))
        return cls(None, tuple(dict.fromkeys(map(str, form.getlist("tenant")))))

    def entries(self, configs: Mapping[str, StoredConfig]) -> tuple[list[StoredConfig], list[str]]:
        """The selected tenants among those that the user may see, and the ids that are unknown."""
        if self.query:
            return matching(configs, self.query), []
        known = [configs[tenant] for tenant in self.ticked if tenant in configs]
        return known, [tenant for tenant in self.ticked if tenant not in configs]


@dataclass(frozen=True)
class TenantResult:
    """The result of a bulk change for one tenant."""

    tenant_id: str
    what: str


def change_page(request: Request, form: FormData) -> Response:
    """Ask for the value of the chosen field."""
    return _ask(request, Selection.read(form), _field(form), "", "")


def preview(request: Request, form: FormData) -> Response:
    """Show what the change does to each tenant. Nothing is written."""
    dashboard, selection, field = dashboard_of(request), Selection.read(form), _field(form)
    text = str(form.get("value", "")).strip()
    if wrong := wrong_value(field, text):
        return _ask(request, selection, field, text, wrong)
    entries, unknown = selection.entries(dashboard.configs(request.user))
    changing: dict[str, int] = {}
    first: list[PlannedChange] = []  # the page shows these, and only counts the others
    unchanged: list[str] = []
    refused = [*_unknown_tenants(unknown)]
    for entry in entries:
        plan = plan_change(entry, field, text)
        if plan.refused:
            refused.append(TenantResult(plan.tenant_id, plan.refused))
        elif plan.after is None:
            unchanged.append(plan.tenant_id)
        else:
            changing[plan.tenant_id] = plan.version
            first += [plan] if len(first) < LISTED else []
    versions = _versions(changing)
    return render(
        request,
        "configuration_preview.html",
        field=field,
        text=text,
        selection=selection,
        changing=len(changing),
        first=first,
        unchanged=unchanged,
        refused=refused,
        versions=versions,
        too_many=len(quote_plus(versions)) > _FORM_CHARS,
        LISTED=LISTED,
    )


def apply(request: Request, form: FormData) -> Response:
    """Write the change that the preview showed, but only to tenants whose version is still the one in the preview.

    When the store fails or the time is up, the remaining tenants stay on the page with a button to continue.
    """
    dashboard, field, text = dashboard_of(request), _field(form), str(form.get("value", ""))
    configs = dashboard.configs(request.user)
    expected, unknown = _expected(str(form.get("versions", "")))
    unknown += [tenant for tenant in expected if tenant not in configs]
    results: dict[str, list[TenantResult]] = {"saved": [], "conflict": [], "refused": list(_unknown_tenants(unknown))}
    left = {tenant: version for tenant, version in expected.items() if tenant in configs}
    stopped, until = "", time.monotonic() + _PATIENCE_SECONDS
    for tenant, version in [*left.items()]:
        if time.monotonic() > until:
            break
        try:
            plan = plan_change(configs[tenant], field, text)
            state, what = _write(dashboard, plan, version, request.user.name)
        except ConfigStoreUnavailable as e:
            stopped = str(e)
            break
        results[state].append(TenantResult(tenant, what))
        del left[tenant]
    return render(
        request,
        "configuration_applied.html",
        status=HTTPStatus.SERVICE_UNAVAILABLE if stopped else HTTPStatus.OK,
        field=field,
        text=text,
        results=results,
        left=[TenantResult(tenant, "not saved yet") for tenant in left],
        versions=_versions(left),
        stopped=stopped,
        LISTED=LISTED,
    )


def _write(dashboard: Dashboard, plan: PlannedChange, expected: int, actor: str) -> tuple[str, str]:
    """Write a planned change. Returns the kind of result and its text. Raises `ConfigStoreUnavailable`."""
    if plan.version != expected:
        return "conflict", f"somebody saved version {plan.version} meanwhile, upon {expected}"
    if plan.after is None:
        return "refused", plan.refused or "nothing changes"
    try:
        written = write_config(dashboard.parts.configs, plan.after, actor=actor, expected_version=expected)
    except ConfigConflict as e:
        return "conflict", e.what
    return "saved", f"version {written}"


def _versions(expected: Mapping[str, int]) -> str:
    """Tenants with their versions in one hidden input: `acme=3 org:b=1`."""
    return " ".join(f"{tenant}={version}" for tenant, version in expected.items())


def _expected(text: str) -> tuple[dict[str, int], list[str]]:
    """The tenants of a preview with their versions, and the words that are not valid."""
    versions, others = {}, []
    for word in text.split():
        tenant, _, version = word.rpartition("=")
        if tenant and version.isascii() and version.isdecimal() and len(version) < 10:
            versions[tenant] = int(version)
        else:
            others.append(word[:200])
    return versions, others


def _unknown_tenants(tenants: Iterable[str]) -> Iterable[TenantResult]:
    return (TenantResult(tenant, "there is no such tenant") for tenant in tenants)


def _field(form: FormData) -> str:
    """The path of the field to change. Raises 400 for one that does not exist."""
    path = str(form.get("field", ""))
    if path not in field_paths():
        raise HTTPException(HTTPStatus.BAD_REQUEST, "choose a field to change")
    return path


def _ask(request: Request, selection: Selection, field: str, text: str, wrong: str) -> Response:
    entries, unknown = selection.entries(dashboard_of(request).configs(request.user))
    if not entries and not unknown:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "no tenant is selected: tick some, or change all that match")
    return render(
        request,
        "configuration_change.html",
        status=HTTPStatus.BAD_REQUEST if wrong else HTTPStatus.OK,
        selection=selection,
        field=field,
        text="" if may_be_secret(field, text or None) else text,
        wrong=wrong,
        count=len(entries),
    )
