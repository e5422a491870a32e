"""The errors that people can meet. Each one states in one line what is wrong, where, and what to do about it.

AutooptError
├── InvalidInput                      correct what was given
│   ├── InvalidConfig
│   │   └── BudgetTooSmall
│   ├── InvalidExport
│   ├── InvalidHome
│   ├── InvalidModule
│   ├── InvalidQueries
│   ├── InvalidRequest
│   ├── InvalidReview
│   ├── InvalidSettings
│   └── LMNotConfigured
├── NotFound                          choose another, or create it
│   ├── InvalidArtifact
│   ├── InvalidTenantId
│   ├── UnknownModule
│   ├── UnknownTenant
│   └── UnknownTrace
├── Conflict                          read again, and repeat the change
│   ├── ConfigConflict
│   └── PromotionConflict
├── Unavailable                       wait and try again (transient)
│   ├── AlertNotDelivered
│   │   └── AlertRefused              correct the address or the receiver (not transient)
│   ├── ArtifactStoreUnavailable
│   ├── ConfigStoreUnavailable
│   │   └── ConfigStoreRefused        correct the address or the server (not transient)
│   ├── LMUnavailable
│   └── PhoenixUnavailable
│                                     the others: do what the error suggests
├── AnswersUnreadable
├── DailyBudgetSpent
├── GateNotPassed
├── LaunchFailed
├── NotConfirmed
├── PhoenixRefused
├── PlanningFailed
├── RunFailed
├── StackFailed
└── TenantConfigsMissing
"""

from http import HTTPStatus

from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.text import one_line


class AutooptError(Exception):
    """Base of every error that is meant for a person.

    `transient` errors may go away by themselves (a server is down), so they are worth another try. The others stay
    until somebody changes something. An error contains no secret that this process knows (`secrets.protect`).
    """

    transient = False

    def __init__(self, what: str, remedy: str) -> None:
        self.what = one_line(scrub(what), full=True)
        self.remedy = one_line(scrub(remedy), full=True)
        super().__init__(f"{self.what} -> {self.remedy}")

    def __reduce__(self) -> tuple[type["AutooptError"], tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class InvalidInput(AutooptError):
    """A file, a setting or a request breaks a rule."""


class NotFound(AutooptError):
    """The thing that was named does not exist, or is not usable."""


class Conflict(AutooptError):
    """Somebody else changed the same thing in the meantime, or it exists already."""


class Unavailable(AutooptError):
    """A server or a store does not answer."""

    transient = True


class InvalidConfig(InvalidInput):
    """A tenant's configuration cannot be read or breaks a rule."""


class BudgetTooSmall(InvalidConfig):
    """A budget is too small to decide anything, however often it is spent."""


class InvalidExport(InvalidInput):
    """The target of an export exists already, or cannot be written."""


class InvalidHome(InvalidInput):
    """A folder cannot become the home of an instance, or a stack on this machine may not use it."""


class InvalidModule(InvalidInput):
    """A module breaks a rule that the pipeline relies on."""


class InvalidQueries(InvalidInput):
    """A file of labelled queries cannot be replayed as traffic."""


class InvalidRequest(InvalidInput):
    """An application requested a decision, or sent feedback, with a missing or wrong argument."""


class InvalidReview(InvalidInput):
    """A review cannot be read by its module, or is of a trace that nobody asks about."""


class InvalidSettings(InvalidInput):
    """A process setting (AUTOOPT_*) is missing or wrong."""


class LMNotConfigured(InvalidInput):
    """No language model is configured, its name or key is wrong, or its price is unknown."""


class InvalidArtifact(NotFound):
    """A stored program is missing, damaged, foreign, or made for another signature."""


class InvalidTenantId(NotFound):
    """The text cannot be a tenant id."""


class UnknownModule(NotFound):
    """No module of that name is built in or plugged in."""


class UnknownTenant(NotFound):
    """The tenant has no configuration, so it does not exist."""


class UnknownTrace(NotFound):
    """The text is not a trace id, or Phoenix does not have the trace."""


class ConfigConflict(Conflict):
    """Somebody else wrote a newer version of the configuration in the meantime, or a run is using it."""


class PromotionConflict(Conflict):
    """The active version changed while a candidate was compared with its predecessor."""


class AlertNotDelivered(Unavailable):
    """A receiver of alerts does not accept them."""


class AlertRefused(AlertNotDelivered):
    """A receiver of alerts refused one, and would refuse it again."""

    transient = False


class ArtifactStoreUnavailable(Unavailable):
    """The artifact store cannot be read or written."""


class ConfigStoreUnavailable(Unavailable):
    """The configuration store does not answer."""


class ConfigStoreRefused(ConfigStoreUnavailable):
    """The address of the configuration store is wrong, or its server refuses the commands."""

    transient = False


class LMUnavailable(Unavailable):
    """The language model's endpoint failed even after retries."""


class PhoenixUnavailable(Unavailable):
    """Phoenix does not answer, or is not ready."""


class AnswersUnreadable(AutooptError):
    """Hardly any answer of the language model can be parsed, so an optimizer cannot learn from them."""


class DailyBudgetSpent(AutooptError):
    """The day's budget for language models is spent, or the rest is too little to decide anything."""


class GateNotPassed(AutooptError):
    """The gate did not find a version better than its predecessor, and nobody forced its promotion."""


class LaunchFailed(AutooptError):
    """Dagster's webserver did not accept a run, or the run is gone."""


class NotConfirmed(AutooptError):
    """Nobody was there to confirm a deletion."""


class PhoenixRefused(AutooptError):
    """Phoenix answered, but refused or did not understand the request."""

    @classmethod
    def of_key(cls, endpoint: str, status: int, answer: str) -> "PhoenixRefused":
        """The error for HTTP status 401 or 403: the server does not know the key, or its user lacks the permission."""
        if status == HTTPStatus.FORBIDDEN:
            return cls(
                f"Phoenix {endpoint}: its key may not do this ({status}: {one_line(scrub(answer), length=100)})",
                "set AUTOOPT_PHOENIX_API_KEY to a system key, or to a key of a user who is MEMBER or ADMIN",
            )
        return cls(f"Phoenix {endpoint}: the key is refused ({status})", "set AUTOOPT_PHOENIX_API_KEY")


class PlanningFailed(AutooptError):
    """The sensor could not decide for some tenants whether they are due."""


class RunFailed(AutooptError):
    """A requested run did not reach an outcome for every module."""


class StackFailed(AutooptError):
    """A process of the local stack could not start, or stopped by itself."""


class TenantConfigsMissing(AutooptError):
    """The configuration store lost tenants that nobody removed."""
