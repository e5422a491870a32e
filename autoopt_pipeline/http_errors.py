"""Which failures of an HTTP request may pass by themselves."""

import httpx


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: the server is out of reach, overloaded or failing."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)
