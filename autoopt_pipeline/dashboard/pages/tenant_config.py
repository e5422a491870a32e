"""The pages of one tenant's configuration: form, text, history, going back to a version, removing the tenant."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.authentication import requires
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from autoopt_pipeline.dashboard.config_form import ConfigForm, Document, checked, default_texts, known_modules
from autoopt_pipeline.dashboard.context import Dashboard, configured, dashboard_of, visible_entry, visible_tenant
from autoopt_pipeline.dashboard.flash import say
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError, ConfigConflict, InvalidConfig
from autoopt_pipeline.orchestration.partitions import register_tenant, withdraw_tenant
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields
from autoopt_pipeline.tenants.diff import FieldChange, changed_fields, in_effect, version_before
from autoopt_pipeline.tenants.lifecycle import check_distinct, kept_after_removal, spellings
from autoopt_pipeline.tenants.store import stored_version, write_config
from autoopt_pipeline.tenants.stores.base import StoredConfig, changes_in
from autoopt_pipeline.tenants.yaml_format import as_text, from_text, reverted_to


def form_page(request: Request) -> Response:
    """The form of the configuration, or its text when it is not valid."""
    entry = configured(request)
    try:
        document = chosen_fields(entry.parse())
    except InvalidConfig as e:
        return _show_text(request, entry, as_text(entry), wrong=str(e))
    return _show_form(request, entry, document, ConfigForm.of(document))


def save_form(request: Request, posted: FormData) -> Response:
    """Save the changes of the form. When somebody else saved meanwhile, show their changes first."""
    dashboard, newest = dashboard_of(request), configured(request)
    base = _version_in(request, posted)
    now = chosen_fields(newest.parse())
    shown = ConfigForm.of(chosen_fields(base.parse()))
    form = shown.filled_in(posted).rebased(shown, ConfigForm.of(now))
    document = form.applied_to(now)
    config, errors = checked(document, now)
    if document == now or (config and chosen_fields(config) == now):
        return _back(request, "Nothing was changed.")
    if base.version != newest.version:
        yours = changed_fields(in_effect(newest), config.model_dump(mode="json")) if config else ()
        conflict = _meanwhile(base, newest, yours)
        return _show_form(request, newest, now, form, errors, status=HTTPStatus.CONFLICT, **conflict)
    if config is None:
        return _show_form(request, newest, now, form, errors, status=HTTPStatus.BAD_REQUEST)
    try:
        return _save(dashboard, request, newest, config)
    except ConfigConflict:  # within this very moment
        return save_form(request, posted)


@requires("operator")
def text_page(request: Request) -> Response:
    """The configuration as text, even when it is not valid."""
    entry = configured(request)
    return _show_text(request, entry, as_text(entry))


def save_text(request: Request, form: FormData) -> Response:
    """Save a text. On an error or a conflict, show it beside the text and keep the text."""
    dashboard, newest = dashboard_of(request), configured(request)
    text = str(form.get("text", "")).replace("\r\n", "\n")
    base = _version_in(request, form)
    if text == as_text(base):
        return _back(request, "Nothing was changed.")
    if base.version != newest.version:
        return _show_text(request, newest, text, status=HTTPStatus.CONFLICT, **_meanwhile(base, newest))
    try:
        return _save(dashboard, request, newest, from_text(text, newest))
    except InvalidConfig as e:
        return _show_text(request, newest, text, wrong=str(e), status=HTTPStatus.BAD_REQUEST)
    except ConfigConflict:  # within this very moment
        return save_text(request, form)


def history_page(request: Request) -> Response:
    """All versions, and the differences between two of them."""
    dashboard, tenant = dashboard_of(request), visible_tenant(request)
    versions = dashboard.parts.configs.history(tenant)
    saved = [entry for entry in versions if entry.document is not None]
    a, b = (request.query_params.get(name, "") for name in ("from", "to"))
    changes: Sequence[FieldChange] = ()
    incomparable = ""
    try:
        after = _version(dashboard, tenant, b) if b else saved[-1]
        before = _version(dashboard, tenant, a) if a else None
        if before is None and len(saved) > 1:
            before = stored_version(dashboard.parts.configs, tenant, version_before(versions, after))
        changes = changed_fields(in_effect(before), in_effect(after)) if before else ()
    except AutooptError as e:
        before, after, incomparable = None, saved[-1], str(e)
    return render(
        request,
        "configuration_history.html",
        tenant=tenant,
        versions=[*zip(versions, changes_in(versions), strict=True)][::-1],
        saved=saved[::-1],
        newest=versions[-1],
        before=before,
        after=after,
        changes=changes,
        incomparable=incomparable,
    )


@requires("operator")
def revert_page(request: Request) -> Response:
    return _ask_to_revert(request, request.query_params.get("version", ""))


def revert(request: Request, form: FormData) -> Response:
    """Save an earlier version as a new one. This also brings a removed tenant back."""
    dashboard, newest, version = dashboard_of(request), visible_entry(request), str(form.get("version", ""))
    entry = _version(dashboard, newest.tenant_id, version)
    try:
        config = reverted_to(entry, newest)
        if newest.document is None:
            check_distinct(newest.tenant_id, spellings(dashboard.parts.configs.current()))
        actor, expected = request.user.name, _number(form.get("newest"))
        written = write_config(dashboard.parts.configs, config, actor=actor, expected_version=expected)
    except (InvalidConfig, ConfigConflict) as e:
        return _ask_to_revert(request, version, wrong=str(e))
    register_tenant(dashboard.instance, newest.tenant_id)  # as it may have been removed
    dashboard.statuses.refresh_tenant(newest.tenant_id)
    return _back(request, f"{newest.tenant_id}: configuration version {written}, the same as {version}.")


@requires("operator")
def remove_page(request: Request) -> Response:
    return _ask_to_remove(request)


def remove(request: Request, form: FormData) -> Response:
    """Remove the tenant, and its partition unless a run is in progress."""
    dashboard, tenant = dashboard_of(request), configured(request).tenant_id
    try:
        actor, expected = request.user.name, _number(form.get("newest"))
        dashboard.parts.configs.write(tenant, None, actor=actor, expected_version=expected)
    except ConfigConflict as e:
        return _ask_to_remove(request, wrong=str(e))
    withdrawn = withdraw_tenant(dashboard.instance, tenant)
    dashboard.statuses.refresh_tenant(tenant)
    later = "" if withdrawn else " A run is under way: the sensor removes the partition when it has ended."
    say(request, f"{tenant} was removed.{later}")
    return RedirectResponse("/configuration", HTTPStatus.SEE_OTHER)


def _show_form(
    request: Request,
    entry: StoredConfig,
    document: Document,
    form: ConfigForm,
    errors: Mapping[str, str] | None = None,
    *,
    status: HTTPStatus = HTTPStatus.OK,
    **conflict: Any,
) -> Response:
    values = {
        "tenant": entry.tenant_id,
        "entry": entry,
        "form": form.without_secrets(ConfigForm.of(document).texts),
        "defaults": default_texts(),
        "modules": known_modules(document),
        "errors": errors or {},
        "text": as_text(entry),
        "base": None,
        "rows": (),
    }
    return render(request, "configuration.html", status=status, **{**values, **conflict})


def _show_text(
    request: Request,
    entry: StoredConfig,
    text: str,
    *,
    wrong: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    **conflict: Any,
) -> Response:
    values = {"tenant": entry.tenant_id, "entry": entry, "text": text, "wrong": wrong, "base": None, "rows": ()}
    return render(request, "configuration_text.html", status=status, **{**values, **conflict})


def _meanwhile(base: StoredConfig, newest: StoredConfig, yours: Sequence[FieldChange] = ()) -> dict[str, Any]:
    """The changes of others since the form was opened, and the user's own, field by field."""
    theirs = {change.field: change for change in changed_fields(in_effect(base), in_effect(newest))}
    own = {change.field: change for change in yours}
    return {"base": base, "rows": [(theirs.get(name), own.get(name)) for name in sorted({*theirs, *own})]}


def _save(dashboard: Dashboard, request: Request, newest: StoredConfig, config: RoutingConfigUnified) -> Response:
    actor = request.user.name
    written = write_config(dashboard.parts.configs, config, actor=actor, expected_version=newest.version)
    dashboard.statuses.refresh_tenant(newest.tenant_id)
    changes = changed_fields(in_effect(newest), config.model_dump(mode="json"))
    summary = "; ".join(
        f"{change.field}: {change.display(change.before)} → {change.display(change.after)}" for change in changes
    )
    return _back(request, f"Saved as version {written}. {summary or 'No field has another value.'}")


def _ask_to_revert(request: Request, version: str, *, wrong: str = "") -> Response:
    dashboard, newest = dashboard_of(request), visible_entry(request)
    entry = _version(dashboard, newest.tenant_id, version)
    possible = True
    try:
        config = reverted_to(entry, newest)
        there = newest.document is not None
        changes = changed_fields(in_effect(newest), config.model_dump(mode="json")) if there else []
    except InvalidConfig as e:
        changes, possible, wrong = [], False, str(e)
    return render(
        request,
        "configuration_revert.html",
        status=HTTPStatus.CONFLICT if wrong else HTTPStatus.OK,
        tenant=newest.tenant_id,
        entry=entry,
        newest=newest,
        changes=changes,
        possible=possible,
        wrong=wrong,
    )


def _ask_to_remove(request: Request, *, wrong: str = "") -> Response:
    entry = configured(request)
    status = HTTPStatus.CONFLICT if wrong else HTTPStatus.OK
    stays = kept_after_removal(entry)
    return render(
        request,
        "configuration_remove.html",
        status=status,
        tenant=entry.tenant_id,
        entry=entry,
        stays=stays,
        wrong=wrong,
    )


def _back(request: Request, notice: str) -> Response:
    say(request, notice)
    tenant = quote(visible_tenant(request), safe=":")
    return RedirectResponse(f"/tenants/{tenant}/configuration", HTTPStatus.SEE_OTHER)


def _version_in(request: Request, form: FormData) -> StoredConfig:
    """The version that the form was opened with."""
    return _version(dashboard_of(request), visible_tenant(request), str(form.get("version", "")))


def _version(dashboard: Dashboard, tenant: str, text: str) -> StoredConfig:
    """Raises `UnknownTenant` when the version does not exist."""
    return stored_version(dashboard.parts.configs, tenant, _number(text))


def _number(text: object) -> int:
    if not (isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 10):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the page does not say which version of the configuration it means")
    return int(text)
