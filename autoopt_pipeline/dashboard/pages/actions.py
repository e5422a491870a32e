"""The actions of an operator: run now, approve, decline, roll back. Each is confirmed and recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.authentication import requires
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from autoopt_pipeline.dashboard.context import Dashboard, configured, dashboard_of, visible_tenant
from autoopt_pipeline.dashboard.flash import say
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.orchestration.run_requests import check_request, launch_request
from autoopt_pipeline.registry.module_versions import ModuleVersions, describe_transition, read_programs
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.rollouts import manual
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.tenants.store import rollout_policy

_WHY_CHARS = 1000


@dataclass(frozen=True)
class Action:
    """A button: its label, the question before the action, and whether the button warns."""

    name: str
    label: str
    question: str
    reason_needed: bool = True
    warns: bool = False


ACTIONS: Mapping[str, Action] = {
    action.name: action
    for action in (
        Action("run", "Run now", "Optimize {what} now?", reason_needed=False),
        Action("approve", "Approve", "Make {version} the active version of {what}?"),
        Action("decline", "Decline", "Decline {version} of {what}?"),
        Action("roll-back", "Roll back", "Take {what} back to {version}?", warns=True),
    )
}


@requires("operator")
def confirm(request: Request) -> Response:
    """Ask for confirmation, explain the effect, and let the user give a reason."""
    return _ask(request)


def decide(request: Request, form: FormData) -> Response:
    """Perform the action. On an error, show it beside the question and keep what the user typed."""
    dashboard, tenant, module = dashboard_of(request), visible_tenant(request), request.path_params["module"]
    action = _action(request)
    user, reason = request.user, str(form.get("reason", "")).strip()[:_WHY_CHARS]
    version = str(form.get("version", ""))
    if action.reason_needed and not reason:
        return _ask(request, wrong="Say why: others will read it later.", version=version)
    try:
        match action.name:
            case "run":
                done = _run(dashboard, request, module, force="force" in form, actor=user.name)
            case "approve":
                done = _approve(dashboard, tenant, module, version, actor=user.name, reason=reason)
            case "decline":
                notes = manual.decline(_programs(dashboard, tenant, module), version, actor=user.name, reason=reason)
                done = ". ".join((f"{version} is declined", *notes)) + "."
            case _:
                done = _roll_back(dashboard, tenant, module, version, actor=user.name, reason=reason)
    except AutooptError as e:
        return _ask(request, wrong=str(e), reason=reason, version=version)
    dashboard.statuses.refresh_tenant(tenant)
    say(request, done)
    return RedirectResponse(f"/tenants/{quote(tenant, safe=':')}/modules/{quote(module)}", HTTPStatus.SEE_OTHER)


def _action(request: Request) -> Action:
    action = ACTIONS.get(request.path_params["action"])
    if action is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, "there is no such action")
    return action


def _ask(request: Request, *, wrong: str = "", reason: str = "", version: str | None = None) -> Response:
    dashboard, tenant, module = dashboard_of(request), visible_tenant(request), request.path_params["module"]
    action = _action(request)
    programs = _programs(dashboard, tenant, module)
    named = version or request.query_params.get("version", "")
    details: dict[str, Any] = {}
    if action.name == "run":
        details = _conditions(dashboard, request, module)
    elif action.name == "roll-back":
        named = named or _before(programs)
    else:
        named = named or next(
            (each.version for each in programs.manifests if programs.verdict(each) == Verdict.AWAITING_APPROVAL), ""
        )
        details = {"manifest": programs.manifest(named)}
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
        reason=reason,
        **{"conditions": (), "launches": True, "manifest": None, **details},
    )


def _before(programs: ModuleVersions) -> str:
    return programs.previous() or BASELINE


def _programs(dashboard: Dashboard, tenant: str, module: str) -> ModuleVersions:
    return read_programs(dashboard.parts.files, tenant, module)


def _conditions(dashboard: Dashboard, request: Request, module: str) -> dict[str, Any]:
    """What the sensor looks at, so that who insists knows on what."""
    requested = check_request(
        configured(request), [module], dashboard.instance, dashboard.parts, force=False, count_all=True
    )
    decision = requested.decisions[module]
    return {"conditions": decision.conditions, "launches": decision.launch}


def _run(dashboard: Dashboard, request: Request, module: str, *, force: bool, actor: str) -> str:
    requested = check_request(configured(request), [module], dashboard.instance, dashboard.parts, force=force)
    run_id = launch_request(dashboard.instance, requested, dashboard.parts.settings, started_by=actor)
    return f"Run {run_id} is in Dagster's queue."


def _approve(dashboard: Dashboard, tenant: str, module: str, version: str, *, actor: str, reason: str) -> str:
    policy = rollout_policy(dashboard.parts.configs, tenant)
    programs = _programs(dashboard, tenant, module)
    moved = manual.promote(programs, version, actor=actor, reason=reason, policy=policy)
    return ". ".join((describe_transition(moved.transition), *moved.notes)) + "."


def _roll_back(dashboard: Dashboard, tenant: str, module: str, version: str, *, actor: str, reason: str) -> str:
    programs = _programs(dashboard, tenant, module)
    moved = manual.roll_back(programs, version or None, actor=actor, reason=reason)
    return ". ".join((describe_transition(moved.transition), *moved.notes)) + "."
