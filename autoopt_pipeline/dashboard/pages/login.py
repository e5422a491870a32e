"""Signing in with a token, and out."""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from autoopt_pipeline.dashboard.context import dashboard_of
from autoopt_pipeline.dashboard.security import checked_form
from autoopt_pipeline.dashboard.templating import render


def page(request: Request) -> Response:
    return render(request, "sign_in.html", to=_inside(request.query_params.get("to", "/")), wrong="")


async def sign_in(request: Request) -> Response:
    form = await checked_form(request)
    user = dashboard_of(request).access.by_token(str(form.get("token", "")).strip())
    to = _inside(str(form.get("to", "/")))
    if user is None:
        return render(
            request, "sign_in.html", status=HTTPStatus.FORBIDDEN, to=to, wrong="Nobody has this token. Check it."
        )
    # A new session, because somebody else may know the old one.
    request.session.clear()
    request.session["user"] = user.name
    return RedirectResponse(to, HTTPStatus.SEE_OTHER)


async def sign_out(request: Request) -> Response:
    await checked_form(request)
    request.session.clear()
    return RedirectResponse("/sign-in", HTTPStatus.SEE_OTHER)


def _inside(path: str) -> str:
    """A path of the dashboard. Anything else, such as the URL of another site, becomes the overview."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) and "\n" not in path else "/"
