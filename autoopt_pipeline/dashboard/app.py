"""The web application: which address leads to which page, and how errors are told."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from autoopt_pipeline.dashboard import actions, activity, board, configuration, configurations, signing_in, tenant
from autoopt_pipeline.dashboard.guard import Guard, SecurityHeaders, Sessions, deciding
from autoopt_pipeline.dashboard.rendering import STATIC, render
from autoopt_pipeline.dashboard.state import Dashboard
from autoopt_pipeline.errors import (
    AutooptError,
    ConfigConflict,
    InvalidArtifact,
    InvalidTenantId,
    StaleIncumbent,
    UnknownModule,
    UnknownTenant,
)

_CONFIGURATION = "/tenants/{tenant}/configuration"
_MODULE = "/tenants/{tenant}/modules/{module}"

_STATUS: dict[type[AutooptError], HTTPStatus] = {
    UnknownTenant: HTTPStatus.NOT_FOUND,
    UnknownModule: HTTPStatus.NOT_FOUND,
    InvalidTenantId: HTTPStatus.NOT_FOUND,
    InvalidArtifact: HTTPStatus.NOT_FOUND,
    ConfigConflict: HTTPStatus.CONFLICT,
    StaleIncumbent: HTTPStatus.CONFLICT,
}

_log = logging.getLogger(__name__)


def create_app(dashboard: Dashboard) -> ASGIApp:
    app = Starlette(
        routes=[
            Route("/", board.overview),
            Route("/board", board.overview_board),
            Route("/activity", activity.activity_page),
            Route("/why", tenant.why_page),
            Route("/configuration", configurations.list_page),
            Route("/configuration/add", configurations.add_page),
            Route("/configuration/add", deciding(configurations.add), methods=["POST"]),
            Route("/configuration/change", deciding(configurations.change_page), methods=["POST"]),
            Route("/configuration/preview", deciding(configurations.preview), methods=["POST"]),
            Route("/configuration/apply", deciding(configurations.apply), methods=["POST"]),
            Route("/tenants/{tenant}", tenant.tenant_page),
            Route(_CONFIGURATION, configuration.form_page),
            Route(_CONFIGURATION, deciding(configuration.save_form), methods=["POST"]),
            Route(f"{_CONFIGURATION}/text", configuration.text_page),
            Route(f"{_CONFIGURATION}/text", deciding(configuration.save_text), methods=["POST"]),
            Route(f"{_CONFIGURATION}/history", configuration.history_page),
            Route(f"{_CONFIGURATION}/revert", configuration.revert_page),
            Route(f"{_CONFIGURATION}/revert", deciding(configuration.revert), methods=["POST"]),
            Route(f"{_CONFIGURATION}/remove", configuration.remove_page),
            Route(f"{_CONFIGURATION}/remove", deciding(configuration.remove), methods=["POST"]),
            Route(_MODULE, tenant.module_page),
            Route(f"{_MODULE}/story", tenant.module_story_part),
            Route(f"{_MODULE}/progress", tenant.progress_part),
            Route(f"{_MODULE}/live", tenant.live_part),
            Route(f"{_MODULE}/versions/{{version}}", tenant.version_page),
            Route(f"{_MODULE}/outcomes/{{run}}", tenant.outcome_page),
            Route(f"{_MODULE}/{{action}}", actions.confirm),
            Route(f"{_MODULE}/{{action}}", deciding(actions.decide), methods=["POST"]),
            Route("/sign-in", signing_in.page),
            Route("/sign-in", signing_in.sign_in, methods=["POST"]),
            Route("/sign-out", signing_in.sign_out, methods=["POST"]),
            Route("/healthz", _healthz),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Sessions), Middleware(Guard, access=dashboard.access)],
        exception_handlers={AutooptError: _told, HTTPException: _refused, Exception: _failed},
        lifespan=_looking,
    )
    app.state.dashboard = dashboard
    return SecurityHeaders(app)


@asynccontextmanager
async def _looking(app: Starlette) -> AsyncGenerator[None, None]:
    dashboard: Dashboard = app.state.dashboard
    dashboard.looking.start()
    yield
    dashboard.looking.stop()


def _healthz(request: Request) -> Response:
    """That the process answers. What it depends on has probes of its own."""
    return PlainTextResponse("ok")


def _told(request: Request, error: Exception) -> Response:
    if not isinstance(error, AutooptError):
        raise error
    unavailable = HTTPStatus.SERVICE_UNAVAILABLE if error.transient else HTTPStatus.BAD_REQUEST
    return _error(request, _STATUS.get(type(error), unavailable), error.what, error.remedy)


def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    what = "There is no such page." if error.detail == HTTPStatus(error.status_code).phrase else error.detail
    return _error(request, HTTPStatus(error.status_code), what, "")


def _failed(request: Request, error: Exception) -> Response:
    """Something that nobody foresaw. The server logs it with its trace; the page gives nothing of it away."""
    what = "The dashboard failed at this page."
    return _error(request, HTTPStatus.INTERNAL_SERVER_ERROR, what, "its log says why; the other pages go on")


def _error(request: Request, status: HTTPStatus, what: str, remedy: str) -> Response:
    template = "error_part.html" if "hx-request" in request.headers else "error.html"
    return render(request, template, status=status, phrase=status.phrase, what=what, remedy=remedy)
