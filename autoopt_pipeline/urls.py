"""Addresses that may contain a user and a password, which errors and logs of HTTP clients would quote."""

from urllib.parse import unquote, urlsplit


def without_secrets(address: str) -> str:
    """The address without user, password and query, fit to be shown. Accepts mistyped addresses too."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    before, at, after = rest.rpartition("@")
    if "?" in before:  # either an unquoted password or a query: the text cannot decide
        return f"{scheme}{separator}..."
    # A path may contain an @ too. A password follows a colon or the scheme.
    shown = after if at and (separator or ":" in before) else rest
    return f"{scheme}{separator}{shown.partition('?')[0]}"


def is_web_address(text: str) -> bool:
    """Whether the text is `http://` or `https://` with a host and, optionally, a valid port."""
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def without_login(address: str) -> tuple[str, tuple[str, str] | None]:
    """Split an address into the address without login, and its user and password. An invalid address is unchanged."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address, None
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), login
