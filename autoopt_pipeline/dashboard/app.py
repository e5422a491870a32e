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

from autoopt_pipeline.dashboard.context import Dashboard
from autoopt_pipeline.dashboard.pages import actions, activity, bulk_config, login, modules, overview, tenant_config
from autoopt_pipeline.dashboard.security import Guard, SecurityHeaders, Sessions, deciding
from autoopt_pipeline.dashboard.templating import STATIC, render
from autoopt_pipeline.errors import (
    AutooptError,
    ConfigConflict,
    InvalidArtifact,
    InvalidTenantId,
    PromotionConflict,
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
    PromotionConflict: HTTPStatus.CONFLICT,
}

_log = logging.getLogger(__name__)


def create_app(dashboard: Dashboard) -> ASGIApp:
    app = Starlette(
        routes=[
            Route("/", overview.overview),
            Route("/board", overview.overview_board),
            Route("/activity", activity.activity_page),
            Route("/why", modules.why_page),
            Route("/configuration", bulk_config.list_page),
            Route("/configuration/add", bulk_config.add_page),
            Route("/configuration/add", deciding(bulk_config.add), methods=["POST"]),
            Route("/configuration/change", deciding(bulk_config.change_page), methods=["POST"]),
            Route("/configuration/preview", deciding(bulk_config.preview), methods=["POST"]),
            Route("/configuration/apply", deciding(bulk_config.apply), methods=["POST"]),
            Route("/tenants/{tenant}", modules.tenant_page),
            Route(_CONFIGURATION, tenant_config.form_page),
            Route(_CONFIGURATION, deciding(tenant_config.save_form), methods=["POST"]),
            Route(f"{_CONFIGURATION}/text", tenant_config.text_page),
            Route(f"{_CONFIGURATION}/text", deciding(tenant_config.save_text), methods=["POST"]),
            Route(f"{_CONFIGURATION}/history", tenant_config.history_page),
            Route(f"{_CONFIGURATION}/revert", tenant_config.revert_page),
            Route(f"{_CONFIGURATION}/revert", deciding(tenant_config.revert), methods=["POST"]),
            Route(f"{_CONFIGURATION}/remove", tenant_config.remove_page),
            Route(f"{_CONFIGURATION}/remove", deciding(tenant_config.remove), methods=["POST"]),
            Route(_MODULE, modules.module_page),
            Route(f"{_MODULE}/story", modules.module_story_part),
            Route(f"{_MODULE}/progress", modules.progress_part),
            Route(f"{_MODULE}/live", modules.live_part),
            Route(f"{_MODULE}/versions/{{version}}", modules.version_page),
            Route(f"{_MODULE}/outcomes/{{run}}", modules.outcome_page),
            Route(f"{_MODULE}/{{action}}", actions.confirm),
            Route(f"{_MODULE}/{{action}}", deciding(actions.decide), methods=["POST"]),
            Route("/sign-in", login.page),
            Route("/sign-in", login.sign_in, methods=["POST"]),
            Route("/sign-out", login.sign_out, methods=["POST"]),
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
