"""The errors a user can meet. Each says in one line what is wrong, where, and what to do about it."""

from http import HTTPStatus

from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.text import one_line


class AutooptError(Exception):
    """Base of every error that is meant for a person.

    `transient` errors may go away by themselves (a server is down), so they are worth another try;
    the others stay until somebody changes something. No secret that this process knows is in it (`secrets.protect`).
    """

    transient = False

    def __init__(self, what: str, remedy: str) -> None:
        self.what = one_line(scrub(what), full=True)
        self.remedy = one_line(scrub(remedy), full=True)
        super().__init__(f"{self.what} -> {self.remedy}")

    def __reduce__(self) -> tuple[type["AutooptError"], tuple[str, str]]:
        return type(self), (self.what, self.remedy)


class InvalidTenantId(AutooptError):
    """The text cannot be a tenant id."""


class UnknownTenant(AutooptError):
    """No configuration exists for the tenant, so the tenant does not exist."""


class InvalidConfig(AutooptError):
    """A tenant's configuration cannot be read or breaks a rule."""


class BudgetTooSmall(InvalidConfig):
    """A budget cannot decide anything, however often it is spent."""


class DailyBudgetSpent(AutooptError):
    """The day's budget for language models leaves nothing, or too little to decide anything."""


class NotConfirmed(AutooptError):
    """Nobody could be asked whether something should really be taken away."""


class ConfigConflict(AutooptError):
    """Somebody else wrote a newer version of the configuration in the meantime."""


class ConfigStoreUnavailable(AutooptError):
    """The configuration store does not answer."""

    transient = True


class ConfigStoreRefused(ConfigStoreUnavailable):
    """The configuration store's address is wrong, or its server does not take what is asked of it."""

    transient = False


class TenantConfigsMissing(AutooptError):
    """Tenants that nobody removed are no longer in the configuration store."""


class UnknownModule(AutooptError):
    """No module of that name is built in or plugged in."""


class InvalidModule(AutooptError):
    """A module does not do what the others rely on."""


class InvalidSettings(AutooptError):
    """A process setting (AUTOOPT_*) is missing or wrong."""


class PhoenixUnavailable(AutooptError):
    """Phoenix does not answer, or answers that it is not ready."""

    transient = True


class PhoenixRefused(AutooptError):
    """Phoenix answered, but refused or did not understand what was asked."""

    @classmethod
    def of_key(cls, endpoint: str, status: int, said: str) -> "PhoenixRefused":
        """For the HTTP statuses 401 and 403: the key is none of this server's, or its user may not do what was asked.

        `said` is what the server answered.
        """
        if status == HTTPStatus.FORBIDDEN:
            return cls(
                f"Phoenix {endpoint}: its key may not do this ({status}: {one_line(scrub(said), length=100)})",
                "set AUTOOPT_PHOENIX_API_KEY to a system key, or to a key of a user who is MEMBER or ADMIN",
            )
        return cls(f"Phoenix {endpoint}: the key is refused ({status})", "set AUTOOPT_PHOENIX_API_KEY")


class UnknownTrace(AutooptError):
    """The text is no trace id, or Phoenix does not have the trace."""


class PlanningFailed(AutooptError):
    """For some tenants it cannot be said whether they are due."""


class LMNotConfigured(AutooptError):
    """There is no language model to optimize with."""


class LMUnavailable(AutooptError):
    """The language model's endpoint failed even after retries."""

    transient = True


class AnswersUnreadable(AutooptError):
    """Hardly any answer of the language model can be read, so nothing can be learnt from them."""


class InvalidArtifact(AutooptError):
    """A stored program is missing, damaged, foreign, or made for another signature."""


class GateNotPassed(AutooptError):
    """A version was not found better than what it would replace, and nobody insisted."""


class InvalidExport(AutooptError):
    """The place that an export is to be written to is taken, or cannot be written."""


class ArtifactStoreUnavailable(AutooptError):
    """The artifact store cannot be read or written."""

    transient = True


class InvalidRequest(AutooptError):
    """An application asked for a decision, or gave feedback, with something missing or wrong."""


class PromotionConflict(AutooptError):
    """The active version changed while a candidate was compared with its predecessor."""


class InvalidQueries(AutooptError):
    """A file of labelled queries cannot be played as traffic."""


class AlertNotDelivered(AutooptError):
    """A receiver of alerts does not answer, or cannot take an alert now."""

    transient = True


class AlertRefused(AlertNotDelivered):
    """A receiver of alerts refused one, and would refuse it again."""

    transient = False


class InvalidHome(AutooptError):
    """A folder cannot become the home of an instance, or is not one that a stack on this machine may use."""


class StackFailed(AutooptError):
    """A process of the local stack could not start, or stopped by itself."""


class RunFailed(AutooptError):
    """A run that was asked for did not come to an outcome for every module."""


class LaunchFailed(AutooptError):
    """Dagster's webserver did not take a run, or the run is gone."""
