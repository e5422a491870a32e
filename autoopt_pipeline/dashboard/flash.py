"""A notice about what was done, shown once on the next page."""

from starlette.requests import Request

from autoopt_pipeline.text import one_line

_MAX_CHARS = 600
"""The notice travels in a cookie, and browsers drop cookies over 4 kB."""


def say(request: Request, text: str) -> None:
    request.session["notice"] = one_line(text, length=_MAX_CHARS)


def take(request: Request) -> str:
    """Return the notice and forget it."""
    return request.session.pop("notice", "")
