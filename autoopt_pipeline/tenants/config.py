"""`RoutingConfigUnified`: everything a tenant can decide about the optimization of its modules."""

import json
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AwareDatetime, Field, ValidationError, ValidationInfo, field_validator, model_validator

from autoopt_pipeline.durations import read_duration
from autoopt_pipeline.errors import InvalidConfig, InvalidTenantId
from autoopt_pipeline.modules.catalog import default_modules, module_names
from autoopt_pipeline.settings import KEY_VARIABLE
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.text import did_you_mean
from autoopt_pipeline.urls import is_web_address
from autoopt_pipeline.validation import Strict, describe_error, first_error

PromotionMode = Literal["auto", "manual"]
AnswerFormatChoice = Literal["auto", "chat", "json_schema"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# Every version of a configuration holds the whole list. A trace that Phoenix has no more, or that is older than the
# lookback, need not stand in it.
MAX_FORGOTTEN_TRACES = 1000

# All agents and their descriptions stand in every prompt of routing.
MAX_AGENTS = 500

# Longest duration, in seconds: the calendar ends, and to reckon with a time beyond it is an error.
_TEN_YEARS = 10 * 365 * 24 * 3600

# Largest number of calls, tokens or traces: what is told of them has to be a number for every reader.
_MOST = 10**12

_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_AGENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_PHOENIX_KEYS = ("AUTOOPT_PHOENIX_API_KEY", "PHOENIX_API_KEY")


# Fields in which somebody may have put a key or a password, so that no error quotes them, with what belongs there.
MAY_HOLD_SECRETS = {
    "api_key_env": "give the name of an environment variable that ends with _API_KEY, not Phoenix's, never the key",
    "api_base": "give http:// or https:// and a host, without user or password",
}


class Agent(Strict):
    """One of the tenant's agents that routing may answer."""

    name: str = Field(description="As the application names it.")
    description: str = Field("", max_length=500, description="What the agent is for; the model reads it.")

    @field_validator("name")
    @classmethod
    def _can_be_answered(cls, name: str) -> str:
        if not _AGENT_NAME.fullmatch(name):
            raise ValueError(
                f"{name[:60]!r} is no agent's name: up to 100 letters, digits, '_', '.' and '-', the first a letter "
                "or a digit"
            )
        return name


class LMSettings(Strict):
    """The language model that optimizes and answers. The key itself never stands here."""

    model: str = Field(min_length=1, description="As DSPy names it, e.g. openai/gpt-4o-mini; or stand-in.")
    api_base: str | None = Field(
        None, max_length=500, description="Endpoint, for servers that speak the OpenAI protocol: http:// or https://."
    )
    api_key_env: str | None = Field(
        None,
        description="Environment variable that holds the key; its name ends with _API_KEY.",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="By default 0, where the model allows it.")
    max_tokens: int | None = Field(None, ge=16, le=_MOST, description="By default 512, where the model allows it.")
    answer_format: AnswerFormatChoice = Field(
        "auto",
        description="chat: DSPy's sections; json_schema: a short prompt, with a schema that the endpoint enforces; "
        "auto: json_schema where the endpoint enforces it and answers get no worse.",
    )
    concurrency: int = Field(8, ge=1, le=64, description="Calls under way at once.")
    timeout_seconds: float = Field(60, gt=0, le=3600, description="Longest wait for one answer.")

    _durations = field_validator("timeout_seconds", mode="before")(read_duration)

    @field_validator("api_base")
    @classmethod
    def _web_address(cls, address: str | None) -> str | None:
        # A password in it could be read by all who may read the configuration; and a file is no endpoint.
        if address and (not is_web_address(address) or urlsplit(address).username is not None):
            raise ValueError(MAY_HOLD_SECRETS["api_base"])
        return address

    @field_validator("api_key_env")
    @classmethod
    def _no_other_key(cls, name: str | None) -> str | None:
        # Not every variable: the key is sent to api_base, and a tenant must not be able to send other secrets there.
        # Phoenix's key opens all tenants' traces.
        if name is not None and (not KEY_VARIABLE.fullmatch(name) or name in _PHOENIX_KEYS):
            raise ValueError(MAY_HOLD_SECRETS["api_key_env"])
        return name


class Budget(Strict):
    """What one module's optimization may spend on the language model in one run."""

    max_lm_calls: int = Field(
        6000, ge=1, le=_MOST, description="Calls; when they are spent, the best so far is judged."
    )
    max_tokens: int = Field(20_000_000, ge=1, le=_MOST, description="Tokens in and out, of all calls.")


class RolloutPolicy(Strict):
    """How a new version is rolled out: compared with its predecessor in production while both serve side by side."""

    monitor: bool = Field(
        True, description="Compare each new version with its predecessor in production, and roll back regressions."
    )
    holdback_fraction: float = Field(
        0.1, gt=0, le=0.5, description="Fraction of requests that the predecessor keeps during the rollout."
    )
    canary_fraction: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Fraction of requests that a proven candidate gets before it becomes active; 0: none.",
    )
    max_days: float = Field(14.0, gt=0, le=90, description="Longest rollout, in days.")

    _durations = field_validator("max_days", mode="before")(read_duration)

    @model_validator(mode="after")
    def _a_canary_is_monitored(self) -> Self:
        if self.canary_fraction and not self.monitor:
            raise ValueError("a canary_fraction needs monitor: true, because the rollout monitor ends a canary")
        return self


class DailyBudget(Strict):
    """What all optimizations of a tenant may spend on language models, teachers too, in a day of UTC."""

    max_lm_calls: int | None = Field(None, ge=0, le=_MOST, description="By default there is no limit.")
    max_tokens: int | None = Field(None, ge=0, le=_MOST, description="By default there is no limit.")


class Retry(Strict):
    """How what may pass by itself is tried again.

    A step that fails before it has spent anything, because something does not answer, is tried again in the same run.
    What was under way in a run that was killed is tried again in another one.
    """

    max_retries: int = Field(2, ge=0, le=10)
    delay_seconds: int = Field(5, ge=0, le=3600, description="Before the first try again, give or take as much.")
    backoff: Literal["constant", "exponential"] = Field(
        "exponential", description="exponential: once the delay, then 3, 7, 15 times; constant: once each time."
    )

    _durations = field_validator("delay_seconds", mode="before")(read_duration)

    def delay(self, attempt: int) -> int:
        """Seconds before a try again; `attempt` counts from 1."""
        return self.delay_seconds * (2**attempt - 1 if self.backoff == "exponential" else 1)


class QuietHours(Strict):
    """Hours in which nothing is launched by itself, by the clock of a time zone."""

    start: str = Field(description="HH:MM")
    end: str = Field(description="HH:MM, or 24:00; where it is not after the start, it is on the next day.")
    weekdays: list[Weekday] = Field(list(WEEKDAYS), min_length=1, description="The days on which they start.")
    time_zone: str = Field("UTC", description="As IANA names it, e.g. Europe/Berlin.")

    @field_validator("start", "end")
    @classmethod
    def _clock_time(cls, text: str, info: ValidationInfo) -> str:
        if not _CLOCK.fullmatch(text) and (text, info.field_name) != ("24:00", "end"):
            raise ValueError(f"{text[:60]!r} is no time of day: HH:MM, from 00:00 to 23:59")
        return text

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name[:60]!r} is no IANA time zone, such as Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _some_hours(self) -> Self:
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start}; a whole day is from 00:00 to 24:00")
        return self


class ModuleSettings(Strict):
    """Settings of one module; what is not set here is taken from the tenant."""

    enabled: bool = Field(True, description="Whether the sensor optimizes this module.")
    optimization_interval_seconds: int | None = Field(None, ge=1, le=_TEN_YEARS, description="By default the tenant's.")
    min_samples_for_optimization: int | None = Field(None, ge=1, le=_MOST, description="By default the tenant's.")
    retrain_after: AwareDatetime | None = Field(
        None, description="Due at once from this moment (UTC) on, until an optimization has ended after it."
    )

    _durations = field_validator("optimization_interval_seconds", mode="before")(read_duration)

    @field_validator("retrain_after")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        try:
            return moment.astimezone(UTC) if moment else None
        except OverflowError:
            raise ValueError("the year is none from 1 to 9999 in UTC") from None


_NOTHING_CHOSEN = ModuleSettings()


def _default_modules() -> dict[str, ModuleSettings]:
    return {name: ModuleSettings() for name in default_modules()}


class RoutingConfigUnified(Strict):
    """A tenant's configuration. Durations are in seconds, and all times are UTC."""

    tenant_id: str = Field(description="`acme` or `org:tenant`; it never changes.")
    enable_auto_optimization: bool = Field(True, description="Turn automatic optimization on or off.")
    optimization_interval_seconds: int = Field(
        3600, ge=1, le=_TEN_YEARS, description="Least time between two attempts to optimize a module."
    )
    min_samples_for_optimization: int = Field(
        100, ge=1, le=_MOST, description="New traces and annotations that make a module due."
    )
    lookback_seconds: int = Field(
        30 * 24 * 3600, ge=60, le=_TEN_YEARS, description="How far back traces are learnt from, whether new or not."
    )
    modules: dict[Annotated[str, Field(max_length=40)], ModuleSettings] = Field(
        default_factory=_default_modules, max_length=100, description="The modules to optimize."
    )
    agents: list[Agent] = Field(
        default_factory=list, max_length=MAX_AGENTS, description="The agents that routing chooses from."
    )
    lm: LMSettings | None = Field(None, description="Language model; by default the deployment's (AUTOOPT_LM).")
    teacher_lm: LMSettings | None = Field(
        None,
        description="Stronger model that writes instructions and demos; by default AUTOOPT_TEACHER_LM, or lm itself.",
    )
    budget: Budget = Field(Budget(), description="What one module may spend on the language model in one run.")
    daily_budget: DailyBudget = Field(
        DailyBudget(), description="What all modules may spend on the language model in one day (UTC)."
    )
    quiet_hours: list[QuietHours] = Field(
        default_factory=list, max_length=20, description="When nothing is launched by itself."
    )
    retry: Retry = Field(
        Retry(),
        description="Trying again in the same run what may pass by itself, and soon in another one after a kill.",
    )
    max_run_seconds: int | None = Field(
        None,
        ge=60,
        le=_TEN_YEARS,
        description="Longest time that a run may take which was launched by itself; by default the deployment's.",
    )
    promotion_mode: PromotionMode = Field(
        "auto", description="auto: what passes the gate becomes active; manual: it waits for approval."
    )
    rollout: RolloutPolicy = Field(
        RolloutPolicy(), description="How new versions are compared with their predecessors in production."
    )
    dspy_max_bootstrapped_demos: int = Field(
        10, ge=0, le=100, description="Demos that a program may show with the model's own answers."
    )
    dspy_max_labeled_demos: int = Field(
        50, ge=1, le=200, description="Demos that a program may show with labels from traces."
    )
    excluded_traces: list[str] = Field(
        default_factory=list,
        max_length=MAX_FORGOTTEN_TRACES,
        description="Ids of traces that are never learnt from; 'autoopt forget' enters them.",
    )

    _durations = field_validator("optimization_interval_seconds", "lookback_seconds", "max_run_seconds", mode="before")(
        read_duration
    )

    @field_validator("tenant_id")
    @classmethod
    def _valid_tenant_id(cls, value: str) -> str:
        try:
            return validate_tenant_id(value)
        except InvalidTenantId as e:
            raise ValueError(str(e)) from None

    @field_validator("agents")
    @classmethod
    def _unique_agents(cls, agents: list[Agent]) -> list[Agent]:
        names = [agent.name for agent in agents]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"agent {twice[0]!r} is listed twice")
        return agents

    @field_validator("excluded_traces")
    @classmethod
    def _trace_ids(cls, trace_ids: list[str]) -> list[str]:
        return list(dict.fromkeys(valid_trace_id(trace_id) for trace_id in trace_ids))

    @model_validator(mode="after")
    def _lookback_covers_interval(self) -> Self:
        if self.lookback_seconds < self.optimization_interval_seconds:
            raise ValueError("lookback_seconds must not be shorter than optimization_interval_seconds")
        return self

    def interval_seconds(self, module: str) -> int:
        """Least time between two attempts to optimize `module`."""
        return self._module(module).optimization_interval_seconds or self.optimization_interval_seconds

    def min_samples(self, module: str) -> int:
        """New evidence that makes `module` due."""
        return self._module(module).min_samples_for_optimization or self.min_samples_for_optimization

    def retrain_after(self, module: str) -> datetime | None:
        """From when on `module` is due at once (UTC), until an optimization has ended after that."""
        return self._module(module).retrain_after

    def _module(self, module: str) -> ModuleSettings:
        return self.modules.get(module, _NOTHING_CHOSEN)


def valid_trace_id(text: str) -> str:
    """A trace id as Phoenix writes it, in lower case. Raises `ValueError` when the text is none."""
    trace_id = text.lower()
    if not _TRACE_ID.fullmatch(trace_id):
        raise ValueError(f"{text[:60]!r} is no trace id: 32 hexadecimal digits")
    return trace_id


def parse_config(data: Any, *, where: str) -> RoutingConfigUnified:
    """Validate a configuration. Raises `InvalidConfig` with one line that names the field and the value."""
    try:
        return RoutingConfigUnified.model_validate(data)
    except ValidationError as e:
        raise InvalidConfig(f"{where}: {_first_error(e)}", "correct the field and save again") from None


def wrong_fields(data: Any) -> dict[tuple[int | str, ...], str]:
    """What breaks a rule, by its place in a document; nothing where the document is a configuration."""
    try:
        RoutingConfigUnified.model_validate(data)
    except ValidationError as e:
        # Of several rules that a field breaks the first is the one to mend.
        return {error["loc"]: _secretive(error["loc"], describe_error(error)) for error in reversed(e.errors())}
    return {}


def check_modules(config: RoutingConfigUnified, before: Any = None) -> None:
    """Raise `InvalidConfig` when the configuration names a module that is not installed, and the document that was
    stored `before` did not."""
    known = module_names()
    named = before.get("modules") if isinstance(before, dict) else None
    for name in config.modules:
        if name not in known and not (isinstance(named, dict) and name in named):
            raise InvalidConfig(
                f"tenant {config.tenant_id}: unknown module {name[:60]!r}",
                did_you_mean(name, known, "installed modules"),
            )


def chosen_fields(config: RoutingConfigUnified, *choose: str) -> dict[str, Any]:
    """What the tenant has chosen, as JSON knows it: the fields that were set. The others follow the defaults.

    The top-level fields in `choose` are among them from now on, with what they hold now.
    """
    chosen = {name: getattr(config, name) for name in choose if name in RoutingConfigUnified.model_fields}
    return config.model_copy(update=chosen).model_dump(mode="json", exclude_unset=True)


def with_field(config: RoutingConfigUnified, path: str, value: str) -> RoutingConfigUnified:
    """The configuration with one field replaced, all others as they are: chosen, or following the defaults.

    `path` is dotted (`budget.max_lm_calls`); `value` is JSON where it parses as such, and plain text otherwise.
    """
    *parents, last = path.split(".")
    # Choosing `modules.routing.enabled` must not lose the other modules that the default lists.
    data = chosen_fields(config, *parents[:1])
    target: Any = data
    for depth, name in enumerate(parents, 1):
        if not isinstance(target, dict):
            raise InvalidConfig(f"tenant {config.tenant_id}: {path!r} leads into no object", "check the path")
        if target.get(name) is None:
            target[name] = {}
        target = target[name]
        if not isinstance(target, dict):
            where = ".".join(parents[:depth])
            raise InvalidConfig(
                f"tenant {config.tenant_id}: {where} has no fields of its own",
                f"set {where} as a whole, as JSON",
            )
    target[last] = json_or_text(value)
    if path == "tenant_id":
        raise InvalidConfig("tenant_id cannot be changed", "add a tenant with the new id instead")
    return parse_config(data, where=f"tenant {config.tenant_id}")


def without_field(config: RoutingConfigUnified, path: str) -> RoutingConfigUnified:
    """The configuration in which a field that was chosen follows its default again; of `modules.NAME`, without it.

    Raises `InvalidConfig` where the field was not chosen, or has no default.
    """
    *parents, last = path.split(".")
    data = chosen_fields(config)
    target: Any = data
    for name in parents:
        target = target.get(name) if isinstance(target, dict) else None
    if not isinstance(target, dict) or last not in target or path == "tenant_id":
        raise InvalidConfig(
            f"tenant {config.tenant_id}: {path[:100]!r} is no field that was chosen",
            f"'autoopt config edit {config.tenant_id}' lists those",
        )
    del target[last]
    return parse_config(data, where=f"tenant {config.tenant_id}")


def json_or_text(value: str) -> Any:
    """What JSON says; the text itself where it is none, is nested too deeply, or holds a number beyond all bounds."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _first_error(error: ValidationError) -> str:
    loc = error.errors()[0]["loc"]
    secretive = _secretive(loc, "")
    return f"{'.'.join(map(str, loc))}: {secretive}" if secretive else first_error(error)


def _secretive(loc: tuple[int | str, ...], message: str) -> str:
    """The message, but for a field where a secret may stand."""
    return MAY_HOLD_SECRETS.get(str(loc[-1]), message) if loc else message
