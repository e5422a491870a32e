"""What stands before every page: who asks, whether the form is one of ours, and what browsers are told."""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoopt_pipeline.dashboard.auth import LOOPBACK, Access, User

SESSION_SECONDS = 12 * 3600
"""How long who has signed in stays so."""

_OPEN = ("/static/", "/sign-in", "/healthz")
"""What everybody may see."""

_HEADERS = {
    # Charts carry their values as styles of their cells; there are no other inline styles, and no inline scripts.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "style-src-attr 'unsafe-inline'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}

_FORM_BYTES = 1_000_000
_FORM_FIELDS = 20_000


class SecurityHeaders:
    """What browsers are told of every answer, also of one to an error that nobody foresaw."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                if not scope["path"].startswith("/static/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Guard:
    """Finds out who asks, and sends others to sign in. Puts `person` and `csrf` into the scope."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refuse(Request(scope)) if scope["type"] == "http" else None
        await (refused or self._app)(scope, receive, send)

    def _refuse(self, request: Request) -> Response | None:
        if self._access.everybody and request.url.hostname not in LOOPBACK:
            # Another site's name that was made to lead here must not act for whoever sits here.
            return PlainTextResponse("open the dashboard as localhost or 127.0.0.1", HTTPStatus.MISDIRECTED_REQUEST)
        person, by_cookie = self._who(request)
        request.scope["person"] = person
        request.scope["csrf"] = request.session.setdefault("csrf", secrets.token_urlsafe(24)) if by_cookie else None
        if person or request.url.path.startswith(_OPEN):
            return None
        if self._access.proxy and not self._access.tokens:
            return PlainTextResponse("the proxy names nobody whom the dashboard knows", HTTPStatus.FORBIDDEN)
        if "authorization" in request.headers or request.method != "GET":
            return PlainTextResponse("sign in first", HTTPStatus.UNAUTHORIZED)
        to = "/sign-in?" + urlencode({"to": _path(request)})
        if "hx-request" in request.headers:
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": to})
        return RedirectResponse(to, HTTPStatus.SEE_OTHER)

    def _who(self, request: Request) -> tuple[User | None, bool]:
        """Who asks, and whether a browser says so by itself, so that forms have to prove where they come from."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and not self._access.everybody:
            return self._access.by_token(token.strip()), False
        if self._access.everybody:
            return self._access.everybody, True
        if person := self._access.by_proxy(request.headers, request.client.host if request.client else None):
            return person, True
        return self._access.by_name(request.session.get("user", "")), True


def _path(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


class Sessions:
    """Starlette's signed cookies; only over TLS where the request came so, also through a proxy."""

    def __init__(self, app: ASGIApp) -> None:
        key = secrets.token_urlsafe(32)  # whoever restarts the dashboard signs everybody out

        def sessions(https: bool) -> ASGIApp:
            name = "__Host-autoopt" if https else "autoopt"
            return SessionMiddleware(
                app, key, session_cookie=name, max_age=SESSION_SECONDS, same_site="lax", https_only=https
            )

        self._plain, self._tls = sessions(False), sessions(True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        forwarded = Headers(scope=scope).get("x-forwarded-proto") if scope["type"] == "http" else None
        https = "https" in (scope.get("scheme"), forwarded)
        await (self._tls if https else self._plain)(scope, receive, send)


def person_of(request: Request) -> User:
    return request.scope["person"]


def require_operator(request: Request) -> None:
    """Raises 403 for a viewer."""
    if not person_of(request).may_operate:
        raise HTTPException(HTTPStatus.FORBIDDEN, "viewers change nothing; ask an operator")


Decide = Callable[[Request, FormData], Response]


def deciding(decide: Decide) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for a form that changes something: only an operator's, and only one of our own pages."""

    async def endpoint(request: Request) -> Response:
        form = await checked_form(request)
        require_operator(request)
        return await run_in_threadpool(decide, request, form)

    return endpoint


async def checked_form(request: Request) -> FormData:
    """A form of our own page. Raises 403 for one that another site has sent."""
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        raise HTTPException(HTTPStatus.LENGTH_REQUIRED, "the form does not say how long it is")
    if int(length) > _FORM_BYTES:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the form is too large")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(HTTPStatus.FORBIDDEN, "the form comes from another site")
    form = await request.form(max_files=0, max_fields=_FORM_FIELDS)
    expected: Any = request.scope["csrf"]
    if expected is not None and not hmac.compare_digest(str(form.get("csrf", "")), expected):
        raise HTTPException(HTTPStatus.FORBIDDEN, "the form is of another session; open its page anew")
    return form
