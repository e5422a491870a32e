"""What was done, told on the next page."""

from starlette.requests import Request

from autoopt_pipeline.text import one_line

_MAX_CHARS = 600
"""It travels in a cookie, and browsers drop those that are longer than 4 kB."""


def say(request: Request, text: str) -> None:
    request.session["notice"] = one_line(text, length=_MAX_CHARS)


def take(request: Request) -> str:
    """What is to be told now, once."""
    return request.session.pop("notice", "")
