"""What happened, as plain values: what alerts are made of."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class ModuleFailed:
    """A run ended without an outcome for the module. `cause` is one line, the same for the same cause."""

    at: datetime
    tenant: str
    module: str
    run_id: str
    cause: str
    url: str | None = None


@dataclass(frozen=True)
class ModuleSucceeded:
    """A run ended with an outcome for the module, whatever its verdict."""

    at: datetime
    tenant: str
    module: str


@dataclass(frozen=True)
class RolledBack:
    """The rollout moved a tenant back by itself."""

    at: datetime
    tenant: str
    module: str
    detail: str
    url: str | None = None


@dataclass(frozen=True)
class Ticked:
    """A sensor looked, and what kept it from what it is for: `service` is what failed, None where nothing did.

    `works` are the services that answered it, where those are not all that it ever asks (None).
    """

    at: datetime
    sensor: str
    service: str | None = None
    cause: str = ""
    works: frozenset[str] | None = None


Event = ModuleFailed | ModuleSucceeded | RolledBack | Ticked
