"""Users and what they may see and do: from an access file, or one token that opens everything."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, IPvAnyNetwork, ValidationError, field_validator
from starlette.authentication import BaseUser

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.validation import Strict, first_error

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
"""Host names that reach only this machine."""

_SHORTEST_TOKEN = 24
"""Characters. An attacker can try tokens as fast as the server answers, so a token must not be a word."""


class Role(StrEnum):
    """A viewer sees pages; a reviewer also answers questions; an operator also decides, launches and configures."""

    VIEWER = "viewer"
    REVIEWER = "reviewer"
    OPERATOR = "operator"

    @property
    def includes(self) -> tuple["Role", ...]:
        """The roles whose rights this one has: itself and those before it."""
        roles = tuple(Role)
        return roles[: roles.index(self) + 1]


@dataclass(frozen=True)
class User(BaseUser):
    """A user. `tenants` are patterns of the tenant ids that the user may see: `acme`, `org:*`, `*`."""

    name: str
    role: Role
    tenants: tuple[str, ...] = ("*",)

    is_authenticated = True

    @property
    def may_review(self) -> bool:
        return Role.REVIEWER in self.role.includes

    @property
    def may_operate(self) -> bool:
        return Role.OPERATOR in self.role.includes

    @property
    def sees_all(self) -> bool:
        return "*" in self.tenants

    def sees(self, tenant_id: str) -> bool:
        return self.sees_all or any(fnmatchcase(tenant_id, pattern) for pattern in self.tenants)


class _User(Strict):
    name: str = Field(min_length=1, max_length=200)
    role: Role = Role.VIEWER
    tenants: list[str] = Field(["*"], min_length=1)
    token_sha256: str | None = None

    @field_validator("token_sha256")
    @classmethod
    def _is_hash(cls, text: str | None) -> str | None:
        # The message does not quote the value, because somebody may have entered the token itself.
        if text is not None and not re.fullmatch("[0-9a-f]{64}", text):
            raise ValueError("has to be the token's SHA-256: 64 hexadecimal digits in lower case, and not the token")
        return text

    @property
    def user(self) -> User:
        return User(self.name, self.role, tuple(self.tenants))


class _Proxy(Strict):
    user_header: str
    addresses: list[IPvAnyNetwork] = Field(min_length=1)

    @field_validator("user_header")
    @classmethod
    def _is_header(cls, name: str) -> str:
        if not re.fullmatch("[A-Za-z0-9-]+", name):
            raise ValueError(f"{name[:60]!r} is no header's name, such as X-Forwarded-User")
        return name


class _File(Strict):
    users: list[_User] = Field(min_length=1)
    proxy: _Proxy | None = None


@dataclass(frozen=True)
class Access:
    """The users by name and by token. `everybody` is the user of all requests; None means that users sign in."""

    everybody: User | None
    users: Mapping[str, User]
    tokens: Mapping[str, User]
    proxy: _Proxy | None = None

    def by_token(self, token: str) -> User | None:
        digest = hashlib.sha256(token.encode()).hexdigest()
        # All tokens are compared, so that the time reveals nothing about a token that is partly right.
        matches = [user for known, user in self.tokens.items() if hmac.compare_digest(known, digest)]
        return matches[0] if matches else None

    def by_name(self, name: str) -> User | None:
        """The user of a session, with the role and tenants that the user has now."""
        return self.users.get(name)

    def by_proxy(self, headers: Mapping[str, str], address: str | None) -> User | None:
        """The user that a reverse proxy names. The header counts only from the proxy's own addresses."""
        if self.proxy is None or address is None:
            return None
        client = ip_address(address.partition("%")[0])
        client = getattr(client, "ipv4_mapped", None) or client  # as a server on :: sees it
        if not any(client in network for network in self.proxy.addresses):
            return None
        return self.users.get(headers.get(self.proxy.user_header, ""))


def open_access(settings: Settings, *, host: str, who: str) -> Access:
    """The access that the settings grant. Without settings, everybody on this machine may do everything, as `who`.

    Raises `InvalidSettings` when nothing is set and the host is not this machine alone, or when what is set is wrong.
    """
    if settings.dashboard_access:
        return _read(settings.dashboard_access)
    if settings.dashboard_token:
        token = settings.dashboard_token.get_secret_value()
        if len(token) < _SHORTEST_TOKEN:
            raise InvalidSettings(
                f"AUTOOPT_DASHBOARD_TOKEN has {len(token)} characters, and can be guessed",
                f"set one of {_SHORTEST_TOKEN} or more, e.g. by 'openssl rand -hex 32'",
            )
        user = User("operator", Role.OPERATOR)
        return Access(None, {user.name: user}, {hashlib.sha256(token.encode()).hexdigest(): user})
    if host not in LOOPBACK:
        raise InvalidSettings(
            f"the dashboard would be open to everybody who reaches {host}",
            "set AUTOOPT_DASHBOARD_ACCESS or AUTOOPT_DASHBOARD_TOKEN (docs/dashboard.md), or use --host 127.0.0.1",
        )
    return Access(User(who, Role.OPERATOR), {}, {})


def _read(path: Path) -> Access:
    where = f"AUTOOPT_DASHBOARD_ACCESS ({path})"
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = _File.model_validate(data)
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidSettings(f"{where}: {e}", "name a file that can be read") from None
    except yaml.YAMLError as e:
        raise InvalidSettings(f"{where}: {e}", "correct the file") from None
    except ValidationError as e:
        raise InvalidSettings(f"{where}: {first_error(e)}", "correct the file (docs/dashboard.md)") from None
    users = {entry.name: entry.user for entry in file.users}
    tokens = {entry.token_sha256: entry.user for entry in file.users if entry.token_sha256}
    if len(users) < len(file.users):
        raise InvalidSettings(f"{where}: two users have the same name", "give each a name of their own")
    if not tokens and file.proxy is None:
        raise InvalidSettings(f"{where}: nobody could sign in", "give a user token_sha256, or set proxy")
    return Access(None, users, tokens, file.proxy)
