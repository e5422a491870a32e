"""Addresses in which a user and a password may stand. HTTP's errors and logs quote what is asked for."""

from urllib.parse import unquote, urlsplit


def without_secrets(address: str) -> str:
    """The address fit to be shown: no user, no password, no query. Takes also what is no address, as people mistype."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    before, at, after = rest.rpartition("@")
    if "?" in before:  # of a password that should have been quoted, or of a query: nobody can tell
        return f"{scheme}{separator}..."
    # A path may hold an @ of its own; a password comes after a colon, or after the scheme.
    shown = after if at and (separator or ":" in before) else rest
    return f"{scheme}{separator}{shown.partition('?')[0]}"


def is_web_address(text: str) -> bool:
    """Whether the text is `http://` or `https://` with a host, and a port that can be one if it has any."""
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def without_login(address: str) -> tuple[str, tuple[str, str] | None]:
    """The address to ask for, and the user and password that stood in it. What is no address stays as it is."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address, None
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), login
