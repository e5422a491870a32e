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

Mode = Literal["off", "observe", "propose", "auto"]
AnswerFormatChoice = Literal["auto", "chat", "json_schema"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: tuple[Weekday, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

# Every version of a configuration holds the whole list. The list needs no trace that Phoenix has deleted or that is
# older than the lookback.
MAX_EXCLUDED_TRACES = 1000

# Every prompt of routing lists all agents with their descriptions.
MAX_AGENTS = 500

# Each candidate model takes two or three heats of every race.
MAX_CANDIDATE_LMS = 5

# Longest duration, in seconds. A longer one could lead to a date beyond the year 9999, which is an error.
_TEN_YEARS = 10 * 365 * 24 * 3600

# Largest number of calls, tokens or traces. Every reader of JSON can represent it exactly.
_MOST = 10**12

_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_AGENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", re.ASCII)
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_PHOENIX_KEYS = ("AUTOOPT_PHOENIX_API_KEY", "PHOENIX_API_KEY")


# Fields in which somebody may have put a key or a password, with the correct content. No error quotes their value.
MAY_HOLD_SECRETS = {
    "api_key_env": "give the name of an environment variable that ends with _API_KEY, not Phoenix's, never the key",
    "api_base": "give http:// or https:// and a host, without user or password",
}


class Agent(Strict):
    """An agent of the tenant that routing can choose."""

    name: str = Field(description="Name of the agent in the application.")
    description: str = Field("", max_length=500, description="Purpose of the agent; the model reads it.")

    @field_validator("name")
    @classmethod
    def _can_be_answered(cls, name: str) -> str:
        if not _AGENT_NAME.fullmatch(name):
            raise ValueError(
                f"{name[:60]!r} is not an agent's name: up to 100 letters, digits, '_', '.' and '-', the first a "
                "letter or a digit"
            )
        return name


class LMPrice(Strict):
    """The price of a language model, in dollars for a million tokens."""

    input: float = Field(ge=0, le=_MOST, description="Dollars for a million input tokens.")
    output: float = Field(ge=0, le=_MOST, description="Dollars for a million output tokens, reasoning included.")
    cached_input: float | None = Field(
        None, ge=0, le=_MOST, description="Dollars for a million tokens from the prompt cache; by default as input."
    )


class LMSettings(Strict):
    """The language model that optimizes and answers. The configuration never contains its key."""

    model: str = Field(min_length=1, description="DSPy's name of the model, e.g. openai/gpt-4o-mini; or stand-in.")
    api_base: str | None = Field(
        None, max_length=500, description="Endpoint of a server with the OpenAI protocol: http:// or https://."
    )
    api_key_env: str | None = Field(
        None,
        description="Environment variable that holds the key; its name ends with _API_KEY.",
    )
    temperature: float | None = Field(None, ge=0, le=2, description="By default 0, if the model allows it.")
    max_tokens: int | None = Field(None, ge=16, le=_MOST, description="By default 512, if the model allows it.")
    answer_format: AnswerFormatChoice = Field(
        "auto",
        description="chat: DSPy's sections; json_schema: a short prompt, with a schema that the endpoint enforces; "
        "auto: json_schema if the endpoint enforces it and the answers do not get worse.",
    )
    concurrency: int = Field(8, ge=1, le=64, description="Concurrent calls.")
    timeout_seconds: float = Field(60, gt=0, le=3600, description="Longest wait for one answer.")
    price: LMPrice | None = Field(
        None, description="Its price, if it is not the one in LiteLLM's table, as for an endpoint of your own."
    )

    _durations = field_validator("timeout_seconds", mode="before")(read_duration)

    @field_validator("api_base")
    @classmethod
    def _web_address(cls, address: str | None) -> str | None:
        # Everybody who may read the configuration could read a password in it. A file is not an endpoint.
        if address and (not is_web_address(address) or urlsplit(address).username is not None):
            raise ValueError(MAY_HOLD_SECRETS["api_base"])
        return address

    @field_validator("api_key_env")
    @classmethod
    def _no_other_key(cls, name: str | None) -> str | None:
        # The key is sent to api_base, so only some variables are allowed: a tenant must not be able to send other
        # secrets there. Phoenix's key opens all tenants' traces.
        if name is not None and (not KEY_VARIABLE.fullmatch(name) or name in _PHOENIX_KEYS):
            raise ValueError(MAY_HOLD_SECRETS["api_key_env"])
        return name


class Budget(Strict):
    """Limits on the language model for the optimization of one module in one run."""

    max_lm_calls: int = Field(
        6000, ge=1, le=_MOST, description="Calls; when they are spent, the gate judges the best candidate so far."
    )
    max_tokens: int = Field(20_000_000, ge=1, le=_MOST, description="Input and output tokens of all calls.")
    max_dollars: float | None = Field(
        None, gt=0, le=_MOST, description="Dollars of all calls, whose prices have to be known; by default no limit."
    )


class Objective(Strict):
    """What a candidate is worth: a version may become active because it is better, or as good and cheaper."""

    max_loss: float = Field(
        0.01,
        ge=0,
        le=0.2,
        description="A cheaper candidate is promoted if it is proven not worse by more than this share of right "
        "answers; 0: only a better one is.",
    )
    min_saving: float = Field(
        0.3, gt=0, lt=1, description="Share of the cost, or of the time, of a decision that a cheaper candidate saves."
    )
    max_cost_increase: float = Field(
        3.0,
        ge=1,
        le=1000,
        description="A better candidate that costs more times as many dollars waits for a person's approval.",
    )


EvidenceKind = Literal["reviews", "live"]


class JudgeSettings(Strict):
    """A language model that judges where two programs disagree, before people do. Alone it never proves anything."""

    lm: LMSettings = Field(description="The judge: another model than the one that answers.")
    mode: Literal["assist", "calibrated"] = Field(
        "assist",
        description="assist: it labels dev and orders the queues of reviews; calibrated: also, once people agree with "
        "it on nine of ten disagreements, they review only a random part of them.",
    )


class RolloutPolicy(Strict):
    """How a new version is compared with its predecessor in production, while both serve side by side."""

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


class QualityPolicy(Strict):
    """How what serves is monitored in production, for as long as it serves."""

    monitor: bool = Field(
        True, description="Find out when the quality of what serves falls; then alert, and optimize the module at once."
    )
    false_alarm_days: float = Field(
        365.0, ge=1, le=3650, description="Days of a module between two false alarms, on average, or more."
    )
    replay_calls: int = Field(
        0,
        ge=0,
        le=1000,
        description="Most calls of a run that ask the version's model again what it was asked before, so that a fall "
        "can be traced to a changed model. 60 tell most changes.",
    )

    _durations = field_validator("false_alarm_days", mode="before")(read_duration)


class DailyBudget(Strict):
    """Limits on language models, including teachers, for all optimizations of a tenant in one day (UTC)."""

    max_lm_calls: int | None = Field(None, ge=0, le=_MOST, description="By default there is no limit.")
    max_tokens: int | None = Field(None, ge=0, le=_MOST, description="By default there is no limit.")
    max_dollars: float | None = Field(None, ge=0, le=_MOST, description="By default there is no limit.")


class Retry(Strict):
    """How transient failures are retried.

    A step that fails before it has spent anything, because a service does not answer, is retried in the same run. The
    modules of a killed run are retried in another run.
    """

    max_retries: int = Field(2, ge=0, le=10)
    delay_seconds: int = Field(
        5, ge=0, le=3600, description="Delay before the first retry, with a random variation of up to 100 %."
    )
    backoff: Literal["constant", "exponential"] = Field(
        "exponential", description="exponential: the delay, then 3, 7, 15 times the delay; constant: always the delay."
    )

    _durations = field_validator("delay_seconds", mode="before")(read_duration)

    def delay(self, attempt: int) -> int:
        """Seconds before a retry; `attempt` counts from 1."""
        return self.delay_seconds * (2**attempt - 1 if self.backoff == "exponential" else 1)


class QuietHours(Strict):
    """Hours, by the clock of a time zone, in which the sensor launches no run."""

    start: str = Field(description="HH:MM")
    end: str = Field(description="HH:MM, or 24:00; an end before or at the start is on the next day.")
    weekdays: list[Weekday] = Field(list(WEEKDAYS), min_length=1, description="Days on which the quiet hours start.")
    time_zone: str = Field("UTC", description="IANA name of the time zone, e.g. Europe/Berlin.")

    @field_validator("start", "end")
    @classmethod
    def _clock_time(cls, text: str, info: ValidationInfo) -> str:
        if not _CLOCK.fullmatch(text) and (text, info.field_name) != ("24:00", "end"):
            raise ValueError(f"{text[:60]!r} is not a time of day: HH:MM, from 00:00 to 23:59")
        return text

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name[:60]!r} is not an IANA time zone such as Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _some_hours(self) -> Self:
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start}; a whole day is from 00:00 to 24:00")
        return self


def _read_mode(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class ModuleSettings(Strict):
    """Settings of one module. The tenant's settings apply to fields that are not set here."""

    mode: Mode | None = Field(None, description="By default the tenant's.")
    optimization_interval_seconds: int | None = Field(None, ge=1, le=_TEN_YEARS, description="By default the tenant's.")
    min_samples_for_optimization: int | None = Field(None, ge=1, le=_MOST, description="By default the tenant's.")
    evidence: EvidenceKind | None = Field(None, description="By default the tenant's.")
    retrain_after: AwareDatetime | None = Field(
        None, description="Moment (UTC) from which the module is due at once, until an optimization ends after it."
    )

    _durations = field_validator("optimization_interval_seconds", mode="before")(read_duration)
    _modes = field_validator("mode", mode="before")(_read_mode)

    @field_validator("retrain_after")
    @classmethod
    def _in_utc(cls, moment: datetime | None) -> datetime | None:
        try:
            return moment.astimezone(UTC) if moment else None
        except OverflowError:
            raise ValueError("the year has to be from 1 to 9999 in UTC") from None


_NOTHING_CHOSEN = ModuleSettings()


def _default_modules() -> dict[str, ModuleSettings]:
    return {name: ModuleSettings() for name in default_modules()}


class RoutingConfigUnified(Strict):
    """A tenant's configuration. Durations are in seconds, and all times are UTC."""

    tenant_id: str = Field(description="`acme` or `org:tenant`; never changes.")
    enable_auto_optimization: bool = Field(True, description="Turn automatic optimization on or off.")
    optimization_interval_seconds: int = Field(
        3600, ge=1, le=_TEN_YEARS, description="Shortest time between two attempts to optimize a module."
    )
    min_samples_for_optimization: int = Field(
        100, ge=1, le=_MOST, description="New traces and annotations that make a module due."
    )
    lookback_seconds: int = Field(
        30 * 24 * 3600, ge=60, le=_TEN_YEARS, description="Age of the oldest traces that an optimization reads."
    )
    modules: dict[Annotated[str, Field(max_length=40)], ModuleSettings] = Field(
        default_factory=_default_modules, max_length=100, description="Modules to optimize."
    )
    agents: list[Agent] = Field(
        default_factory=list, max_length=MAX_AGENTS, description="Agents that routing chooses from."
    )
    lm: LMSettings | None = Field(None, description="Language model; by default the deployment's (AUTOOPT_LM).")
    teacher_lm: LMSettings | None = Field(
        None,
        description="Stronger model that writes instructions and demos; by default AUTOOPT_TEACHER_LM, or lm itself.",
    )
    candidate_lms: list[LMSettings] = Field(
        default_factory=list,
        max_length=MAX_CANDIDATE_LMS,
        description="Other models that the race tries with prompts of their own. A version names the one it asks, and "
        "the application has to give it (Serving(lms=...)).",
    )
    budget: Budget = Field(Budget(), description="Limits on the language model for one module in one run.")
    daily_budget: DailyBudget = Field(
        DailyBudget(), description="Limits on language models for all modules in one day (UTC)."
    )
    quiet_hours: list[QuietHours] = Field(
        default_factory=list, max_length=20, description="Hours in which the sensor launches no run."
    )
    retry: Retry = Field(
        Retry(),
        description="Retries of transient failures in the same run, and of a killed run's modules in another run.",
    )
    max_run_seconds: int | None = Field(
        None,
        ge=60,
        le=_TEN_YEARS,
        description="Longest duration of a run that the sensor launched; by default the deployment's.",
    )
    mode: Mode = Field(
        "auto",
        description="What the sensor's runs may do. off: there are none; observe: everything, except that no version "
        "becomes active; propose: a version that passes the gate waits until a person approves it; auto: it becomes "
        "active.",
    )
    evidence: EvidenceKind = Field(
        "reviews",
        description="What proves a candidate where too few traces are reviewed. reviews: people review its "
        "disagreements with the active version; live: outcomes in production, while a canary gets a fraction.",
    )
    objective: Objective = Field(
        Objective(), description="When a cheaper candidate is promoted, and when a dearer one waits for approval."
    )
    judge: JudgeSettings | None = Field(
        None, description="A language model that saves reviews, as far as people agree with it; by default none."
    )
    rollout: RolloutPolicy = Field(
        RolloutPolicy(), description="How new versions are compared with their predecessors in production."
    )
    quality: QualityPolicy = Field(
        QualityPolicy(), description="How the quality of what serves is monitored in production."
    )
    dspy_max_bootstrapped_demos: int = Field(
        10, ge=0, le=100, description="Most demos of a program with the model's own answers."
    )
    dspy_max_labeled_demos: int = Field(
        50, ge=1, le=200, description="Most demos of a program with labels from traces."
    )
    local_router: bool = Field(
        True,
        description="Whether a classifier that needs no language model competes, in modules that choose one label.",
    )
    excluded_traces: list[str] = Field(
        default_factory=list,
        max_length=MAX_EXCLUDED_TRACES,
        description="Ids of traces that optimizations never read; 'autoopt forget' adds them.",
    )

    _durations = field_validator("optimization_interval_seconds", "lookback_seconds", "max_run_seconds", mode="before")(
        read_duration
    )
    _modes = field_validator("mode", mode="before")(_read_mode)

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
    def _candidates_have_names_of_their_own(self) -> Self:
        # A version names its model by this name alone.
        names = [lm.model for lm in (*([self.lm] if self.lm else []), *self.candidate_lms)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"candidate_lms: {twice[0][:60]!r} is named twice, or is lm itself")
        return self

    @model_validator(mode="after")
    def _lookback_covers_interval(self) -> Self:
        if self.lookback_seconds < self.optimization_interval_seconds:
            raise ValueError("lookback_seconds must not be shorter than optimization_interval_seconds")
        return self

    @model_validator(mode="after")
    def _live_evidence_needs_a_rollout(self) -> Self:
        for module in self.modules:
            if self.evidence_for(module) != "live":
                continue
            if not self.rollout.monitor:
                raise ValueError("evidence: live needs rollout.monitor: true, because the rollout monitor decides")
            if self.mode_of(module) in {"observe", "propose"}:
                raise ValueError(
                    f"evidence: live needs mode: auto for {module}, because a canary serves before it is proven"
                )
        return self

    def interval_seconds(self, module: str) -> int:
        """Shortest time between two attempts to optimize `module`."""
        return self._module(module).optimization_interval_seconds or self.optimization_interval_seconds

    def min_samples(self, module: str) -> int:
        """Number of new traces and annotations that makes `module` due."""
        return self._module(module).min_samples_for_optimization or self.min_samples_for_optimization

    def mode_of(self, module: str) -> Mode:
        """What the sensor's runs may do with `module`."""
        return self._module(module).mode or self.mode

    def evidence_for(self, module: str) -> EvidenceKind:
        """What proves a candidate of `module` where too few traces are reviewed."""
        return self._module(module).evidence or self.evidence

    def retrain_after(self, module: str) -> datetime | None:
        """The moment (UTC) from which `module` is due at once, until an optimization ends after it."""
        return self._module(module).retrain_after

    def _module(self, module: str) -> ModuleSettings:
        return self.modules.get(module, _NOTHING_CHOSEN)


def valid_trace_id(text: str) -> str:
    """Return a trace id as Phoenix writes it, in lower case. Raises `ValueError` for any other text."""
    trace_id = text.lower()
    if not _TRACE_ID.fullmatch(trace_id):
        raise ValueError(f"{text[:60]!r} is not a trace id: 32 hexadecimal digits")
    return trace_id


def parse_config(data: Any, *, where: str) -> RoutingConfigUnified:
    """Validate a configuration. Raises `InvalidConfig`, which names the field and the value."""
    try:
        return RoutingConfigUnified.model_validate(data)
    except ValidationError as e:
        raise InvalidConfig(f"{where}: {_first_error(e)}", "correct the field and save again") from None


def field_errors(data: Any) -> dict[tuple[int | str, ...], str]:
    """The errors of a document by the path of the field; empty for a valid configuration."""
    try:
        RoutingConfigUnified.model_validate(data)
    except ValidationError as e:
        # Reversed, so that the first error of a field wins.
        return {error["loc"]: _without_secret(error["loc"], describe_error(error)) for error in reversed(e.errors())}
    return {}


def check_modules(config: RoutingConfigUnified, before: Any = None) -> None:
    """Raise `InvalidConfig` if a module is not installed, unless the document `before` already names it."""
    known = module_names()
    named = before.get("modules") if isinstance(before, dict) else None
    for name in config.modules:
        if name not in known and not (isinstance(named, dict) and name in named):
            raise InvalidConfig(
                f"tenant {config.tenant_id}: unknown module {name[:60]!r}",
                did_you_mean(name, known, "installed modules"),
            )


def chosen_fields(config: RoutingConfigUnified, *choose: str) -> dict[str, Any]:
    """The fields that the tenant has set, as JSON data. All other fields follow the defaults.

    The top-level fields in `choose` count as set, with their current values.
    """
    chosen = {name: getattr(config, name) for name in choose if name in RoutingConfigUnified.model_fields}
    return config.model_copy(update=chosen).model_dump(mode="json", exclude_unset=True)


def with_field(config: RoutingConfigUnified, path: str, value: str) -> RoutingConfigUnified:
    """Replace one field. All other fields stay as they are: set, or following the defaults.

    `path` is dotted (`budget.max_lm_calls`); `value` is JSON if it parses as such, and plain text otherwise.
    """
    *parents, last = path.split(".")
    # Setting `modules.routing.mode` must not lose the other default modules.
    data = chosen_fields(config, *parents[:1])
    target: Any = data
    for depth, name in enumerate(parents, 1):
        if not isinstance(target, dict):
            raise InvalidConfig(f"tenant {config.tenant_id}: {path!r} does not lead to a field", "check the path")
        if target.get(name) is None:
            target[name] = {}
        target = target[name]
        if not isinstance(target, dict):
            where = ".".join(parents[:depth])
            raise InvalidConfig(
                f"tenant {config.tenant_id}: {where} does not contain fields",
                f"set the whole of {where}, as JSON",
            )
    target[last] = json_or_text(value)
    if path == "tenant_id":
        raise InvalidConfig("tenant_id cannot be changed", "add a tenant with the new id instead")
    return parse_config(data, where=f"tenant {config.tenant_id}")


def without_field(config: RoutingConfigUnified, path: str) -> RoutingConfigUnified:
    """Let a field follow its default again, or remove a module (`modules.NAME`).

    Raises `InvalidConfig` if the field is not set, or has no default.
    """
    *parents, last = path.split(".")
    data = chosen_fields(config)
    target: Any = data
    for name in parents:
        target = target.get(name) if isinstance(target, dict) else None
    if not isinstance(target, dict) or last not in target or path == "tenant_id":
        raise InvalidConfig(
            f"tenant {config.tenant_id}: {path[:100]!r} is not a field that was set",
            f"'autoopt config edit {config.tenant_id}' lists the fields that are set",
        )
    del target[last]
    return parse_config(data, where=f"tenant {config.tenant_id}")


def json_or_text(value: str) -> Any:
    """Parse JSON. Returns the text itself if it is not valid, nested too deeply, or holds an excessive number."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _first_error(error: ValidationError) -> str:
    loc = error.errors()[0]["loc"]
    advice = _without_secret(loc, "")
    return f"{'.'.join(map(str, loc))}: {advice}" if advice else first_error(error)


def _without_secret(loc: tuple[int | str, ...], message: str) -> str:
    """The message, or fixed advice for a field that may hold a secret."""
    return MAY_HOLD_SECRETS.get(str(loc[-1]), message) if loc else message
