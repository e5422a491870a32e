"""The web application: its routes, middleware and error pages."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from autoopt_pipeline.dashboard.auth import LOOPBACK
from autoopt_pipeline.dashboard.context import Dashboard
from autoopt_pipeline.dashboard.pages import (
    actions,
    activity,
    backtests,
    bulk_config,
    login,
    modules,
    overview,
    reviews,
    tenant_config,
)
from autoopt_pipeline.dashboard.security import SecurityHeaders, Sessions, TokenOrSession, operator_form, reviewer_form
from autoopt_pipeline.dashboard.templating import STATIC, render
from autoopt_pipeline.errors import AutooptError, Conflict, NotFound, Unavailable

_CONFIGURATION = "/tenants/{tenant}/configuration"
_MODULE = "/tenants/{tenant}/modules/{module}"
_REVIEW = "/review/{tenant}/{module}"

# An error of no such class is a bad request.
_STATUS = (
    (NotFound, HTTPStatus.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
)

_MESSAGES = {"Not Found": "There is no such page.", "Forbidden": "your role does not allow this; ask an operator"}
"""Messages that replace Starlette's own."""


def create_app(dashboard: Dashboard) -> ASGIApp:
    access, backend = dashboard.access, TokenOrSession(dashboard.access)
    app = Starlette(
        routes=[
            Route("/", overview.overview),
            Route("/board", overview.overview_board),
            Route("/activity", activity.activity_page),
            Route("/why", modules.why_page),
            Route("/review", reviews.list_page),
            Route(_REVIEW, reviews.question_page),
            Route(_REVIEW, reviewer_form(reviews.answer), methods=["POST"]),
            Route("/configuration", bulk_config.list_page),
            Route("/configuration/add", bulk_config.add_page),
            Route("/configuration/add", operator_form(bulk_config.add), methods=["POST"]),
            Route("/configuration/change", operator_form(bulk_config.change_page), methods=["POST"]),
            Route("/configuration/preview", operator_form(bulk_config.preview), methods=["POST"]),
            Route("/configuration/apply", operator_form(bulk_config.apply), methods=["POST"]),
            Route("/tenants/{tenant}", modules.tenant_page),
            Route(_CONFIGURATION, tenant_config.form_page),
            Route(_CONFIGURATION, operator_form(tenant_config.save_form), methods=["POST"]),
            Route(f"{_CONFIGURATION}/text", tenant_config.text_page),
            Route(f"{_CONFIGURATION}/text", operator_form(tenant_config.save_text), methods=["POST"]),
            Route(f"{_CONFIGURATION}/history", tenant_config.history_page),
            Route(f"{_CONFIGURATION}/revert", tenant_config.revert_page),
            Route(f"{_CONFIGURATION}/revert", operator_form(tenant_config.revert), methods=["POST"]),
            Route(f"{_CONFIGURATION}/remove", tenant_config.remove_page),
            Route(f"{_CONFIGURATION}/remove", operator_form(tenant_config.remove), methods=["POST"]),
            Route(_MODULE, modules.module_page),
            Route(f"{_MODULE}/story", modules.module_story_part),
            Route(f"{_MODULE}/progress", modules.progress_part),
            Route(f"{_MODULE}/live", modules.live_part),
            Route(f"{_MODULE}/backtest", backtests.backtest_page),
            Route(f"{_MODULE}/versions/{{version}}", modules.version_page),
            Route(f"{_MODULE}/outcomes/{{run}}", modules.outcome_page),
            Route(f"{_MODULE}/{{action}}", actions.confirm),
            Route(f"{_MODULE}/{{action}}", operator_form(actions.decide), methods=["POST"]),
            Route("/sign-in", login.page),
            Route("/sign-in", login.sign_in, methods=["POST"]),
            Route("/sign-out", login.sign_out, methods=["POST"]),
            Route("/healthz", _healthz),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            # Another site's name that resolves to this machine must not act for whoever sits here without signing in.
            Middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK if access.everybody else ["*"]),
            Middleware(Sessions),
            Middleware(AuthenticationMiddleware, backend=backend, on_error=backend.refuse),
        ],
        exception_handlers={
            AutooptError: handle_autoopt_error,
            HTTPException: handle_http_exception,
            Exception: handle_unexpected_error,
        },
        lifespan=_refreshing,
    )
    app.state.dashboard = dashboard
    return SecurityHeaders(app)


@asynccontextmanager
async def _refreshing(app: Starlette) -> AsyncGenerator[None, None]:
    dashboard: Dashboard = app.state.dashboard
    dashboard.statuses.start()
    yield
    dashboard.statuses.stop()


def _healthz(request: Request) -> Response:
    """Confirm that the process answers. The servers that it depends on have their own probes."""
    return PlainTextResponse("ok")


def handle_autoopt_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, AutooptError):
        raise error
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
    return _error(request, status, error.what, error.remedy)


def handle_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error(request, HTTPStatus(error.status_code), _MESSAGES.get(error.detail, error.detail), "")


def handle_unexpected_error(request: Request, error: Exception) -> Response:
    """The server logs the error with its traceback; the page reveals nothing of it."""
    what = "The dashboard failed at this page."
    return _error(request, HTTPStatus.INTERNAL_SERVER_ERROR, what, "its log says why; the other pages go on")


def _error(request: Request, status: HTTPStatus, what: str, remedy: str) -> Response:
    template = "error_part.html" if "hx-request" in request.headers else "error.html"
    return render(request, template, status=status, phrase=status.phrase, what=what, remedy=remedy)
