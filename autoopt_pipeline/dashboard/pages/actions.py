"""What people decide on the pages: run now, approve, decline, go back. Each is confirmed and recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from autoopt_pipeline.dashboard.context import Dashboard, configured, dashboard_of, visible_tenant
from autoopt_pipeline.dashboard.flash import say
from autoopt_pipeline.dashboard.security import person_of, require_operator
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError, LaunchFailed
from autoopt_pipeline.names import STARTED_BY_TAG
from autoopt_pipeline.orchestration.launch import is_to_run, submit
from autoopt_pipeline.orchestration.partitions import register_tenant
from autoopt_pipeline.orchestration.planner import plan_tenants
from autoopt_pipeline.orchestration.run_requests import run_tags
from autoopt_pipeline.registry.module_versions import PROPOSED, ModuleVersions, path_of, read_programs
from autoopt_pipeline.rollouts import manual
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.store import watch_settings

_WHY_CHARS = 1000


@dataclass(frozen=True)
class Action:
    """A button: what it says, what the person is asked, and whether it does harm."""

    name: str
    label: str
    question: str
    reason_needed: bool = True
    warns: bool = False


ACTIONS: Mapping[str, Action] = {
    each.name: each
    for each in (
        Action("run", "Run now", "Optimize {what} now?", reason_needed=False),
        Action("approve", "Approve", "Make {version} the active version of {what}?"),
        Action("decline", "Decline", "Decline {version} of {what}?"),
        Action("roll-back", "Roll back", "Take {what} back to {version}?", warns=True),
    )
}


def confirm(request: Request) -> Response:
    """Ask, say what will happen, and let the person say why."""
    require_operator(request)
    return _ask(request)


def decide(request: Request, form: FormData) -> Response:
    """Do it. What is in the way is told beside the question, and nothing is lost of what was typed."""
    dashboard, tenant, module = dashboard_of(request), visible_tenant(request), request.path_params["module"]
    action = _action(request)
    person, why = person_of(request), str(form.get("why", "")).strip()[:_WHY_CHARS]
    version = str(form.get("version", ""))
    if action.reason_needed and not why:
        return _ask(request, wrong="Say why: others will read it later.", version=version)
    try:
        match action.name:
            case "run":
                done = _run(dashboard, request, module, force="force" in form, by=person.name)
            case "approve":
                done = _approve(dashboard, tenant, module, version, by=person.name, why=why)
            case "decline":
                notes = manual.decline(_programs(dashboard, tenant, module), version, by=person.name, why=why)
                done = ". ".join((f"{version} is declined, and serves nobody", *notes)) + "."
            case _:
                done = _roll_back(dashboard, tenant, module, version, by=person.name, why=why)
    except AutooptError as e:
        return _ask(request, wrong=str(e), why=why, version=version)
    dashboard.looking.look_again_at(tenant)
    say(request, done)
    return RedirectResponse(f"/tenants/{quote(tenant, safe=':')}/modules/{quote(module)}", HTTPStatus.SEE_OTHER)


def _action(request: Request) -> Action:
    action = ACTIONS.get(request.path_params["action"])
    if action is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such action")
    return action


def _ask(request: Request, *, wrong: str = "", why: str = "", version: str | None = None) -> Response:
    dashboard, tenant, module = dashboard_of(request), visible_tenant(request), request.path_params["module"]
    action = _action(request)
    programs = _programs(dashboard, tenant, module)
    named = version or request.query_params.get("version", "")
    told: dict[str, Any] = {}
    if action.name == "run":
        told = _conditions(dashboard, request, module)
    elif action.name == "roll-back":
        named = named or _before(programs)
    else:
        named = named or next((each.version for each in programs.manifests if programs.verdict(each) == PROPOSED), "")
        told = {"manifest": programs.manifest(named)}
    return render(
        request,
        "confirm.html",
        status=HTTPStatus.CONFLICT if wrong else HTTPStatus.OK,
        tenant=tenant,
        module=module,
        action=action,
        question=action.question.format(what=programs.name, version=named),
        version=named,
        programs=programs,
        wrong=wrong,
        why=why,
        **{"conditions": (), "launches": True, "manifest": None, **told},
    )


def _before(programs: ModuleVersions) -> str:
    return programs.previous() or BASELINE


def _programs(dashboard: Dashboard, tenant: str, module: str) -> ModuleVersions:
    return read_programs(dashboard.parts.files, tenant, module)


def _conditions(dashboard: Dashboard, request: Request, module: str) -> dict[str, Any]:
    """What the sensor looks at, so that who insists knows on what."""
    entry, now = configured(request), datetime.now(UTC)
    parts = dashboard.parts
    plan = plan_tenants(
        {entry.tenant_id: entry}, dashboard.instance, parts.phoenix, now=now, settings=parts.settings, count_all=True
    )
    decision = plan.decisions.get((entry.tenant_id, module))
    return {"conditions": decision.conditions, "launches": decision.launch} if decision else {"launches": False}


def _run(dashboard: Dashboard, request: Request, module: str, *, force: bool, by: str) -> str:
    entry, parts = configured(request), dashboard.parts
    tenant = entry.tenant_id
    plan = plan_tenants(
        {tenant: entry},
        dashboard.instance,
        parts.phoenix,
        now=datetime.now(UTC),
        settings=parts.settings,
        only_modules=[module],
    )
    decision = next(iter(plan.decisions.values()))
    if not is_to_run(decision, force=force):
        raise LaunchFailed(
            f"{tenant}/{module} is not due: {decision.reason.value.replace('_', ' ')}, {decision.detail}",
            "tick 'run it all the same', unless it is turned off, under way, or the day's budget is spent",
        )
    register_tenant(dashboard.instance, tenant)  # as it may have been added a second ago
    tags = run_tags(plan, tenant, [module]) | {STARTED_BY_TAG: by}
    run_id = submit(dashboard.instance, parts.settings.resolved_dagster_api_url, tenant, [module], tags)
    return f"Run {run_id} is in Dagster's queue."


def _approve(dashboard: Dashboard, tenant: str, module: str, version: str, *, by: str, why: str) -> str:
    settings = watch_settings(dashboard.parts.configs, tenant)
    programs = _programs(dashboard, tenant, module)
    moved = manual.promote(programs, version, by=by, why=why, settings=settings)
    return ". ".join((path_of(moved.move), *moved.notes)) + "."


def _roll_back(dashboard: Dashboard, tenant: str, module: str, version: str, *, by: str, why: str) -> str:
    programs = _programs(dashboard, tenant, module)
    moved = manual.roll_back(programs, version or None, by=by, why=why)
    return ". ".join((path_of(moved.move), *moved.notes)) + "."
