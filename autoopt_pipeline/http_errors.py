"""Tells transient failures of HTTP requests from permanent ones."""

import httpx


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later, because the server is unreachable, overloaded or failing."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)
