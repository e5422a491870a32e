"""The middleware before every page: sessions, authentication, CSRF tokens and the headers that protect browsers."""

import hmac
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, requires
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoopt_pipeline.dashboard.auth import Access, Role, User

SESSION_SECONDS = 12 * 3600
"""How long a session lasts."""

_OPEN = ("/static/", "/sign-in", "/healthz")
"""Paths that need no sign-in."""

_HEADERS = {
    # Charts hold their values in the styles of their cells. There are no other inline styles and no inline scripts.
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
    """Adds the security headers to every response, including the one to an unexpected error."""

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


class TokenOrSession(AuthenticationBackend):
    """Authenticates a bearer token, the user that a proxy names, or a signed-in session.

    The scopes are the user's role and those that it includes.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, User] | None:
        scheme, _, token = conn.headers.get("authorization", "").partition(" ")
        by_token = scheme.lower() == "bearer" and not self._access.everybody
        user = self._access.by_token(token.strip()) if by_token else self._browser_user(conn)
        # A browser sends its cookie by itself, so a form has to prove that it comes from one of our pages.
        conn.scope["csrf"] = None if by_token else conn.session.setdefault("csrf", secrets.token_urlsafe(24))
        if user:
            return AuthCredentials(user.role.includes), user
        if conn.url.path.startswith(_OPEN):
            return None
        raise AuthenticationError("sign in first")

    def _browser_user(self, conn: HTTPConnection) -> User | None:
        access, address = self._access, conn.client.host if conn.client else None
        by_name = access.by_name(conn.session.get("user", ""))
        return access.everybody or access.by_proxy(conn.headers, address) or by_name

    def refuse(self, conn: HTTPConnection, error: AuthenticationError) -> Response:
        """Send a browser to the sign-in page; answer everything else with an error."""
        if self._access.proxy and not self._access.tokens:
            return PlainTextResponse("the proxy names nobody whom the dashboard knows", HTTPStatus.FORBIDDEN)
        if "authorization" in conn.headers or conn.scope.get("method") != "GET":
            return PlainTextResponse(str(error), HTTPStatus.UNAUTHORIZED)
        page = conn.url.path + (f"?{conn.url.query}" if conn.url.query else "")
        sign_in = "/sign-in?" + urlencode({"to": page})
        if "hx-request" in conn.headers:
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": sign_in})
        return RedirectResponse(sign_in, HTTPStatus.SEE_OTHER)


class Sessions:
    """Starlette's signed cookies. After a request over TLS, also through a proxy, they are sent only over TLS."""

    def __init__(self, app: ASGIApp) -> None:
        key = secrets.token_urlsafe(32)  # a restart of the dashboard ends all sessions

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


FormHandler = Callable[[Request, FormData], Response]
Endpoint = Callable[[Request], Awaitable[Response]]


def operator_form(handler: FormHandler) -> Endpoint:
    """The endpoint of a form that changes something: only an operator may send it, and only from one of our pages."""
    return _form(Role.OPERATOR, handler)


def reviewer_form(handler: FormHandler) -> Endpoint:
    """The endpoint of a form that reviewers may send, too, and only from one of our pages."""
    return _form(Role.REVIEWER, handler)


def _form(role: Role, handler: FormHandler) -> Endpoint:
    @requires(role.value)
    async def endpoint(request: Request) -> Response:
        form = await checked_form(request)
        return await run_in_threadpool(handler, request, form)

    return endpoint


async def checked_form(request: Request) -> FormData:
    """Read a form. Raises 403 when it does not come from one of our pages."""
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
