"""Process settings, read from the environment (`AUTOOPT_*`). Tenants' own settings are in `tenants.config`."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, Field, SecretStr, ValidationError, WithJsonSchema, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.secrets import protect, protect_address, protect_environment
from autoopt_pipeline.tls import trusted_authorities
from autoopt_pipeline.urls import is_web_address, without_secrets
from autoopt_pipeline.validation import what_is_wrong

KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")
"""What the variables are called that may hold a language model's key."""

STAND_IN = "stand-in"
"""Name of the offline model that answers from the nearest demo. Never a real language model's name."""

KeyVariable = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{KEY_VARIABLE.pattern}$"})]
"""The chart checks it by the schema, before a process reads it."""


class Settings(BaseSettings):
    """Where the parts of the system are. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="AUTOOPT_",
        extra="ignore",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        # Secrets are often made with a line break at their end, keys and addresses with a password alike.
        str_strip_whitespace=True,
    )

    home: Path = Field(
        default_factory=lambda: Path(os.environ.get("DAGSTER_HOME") or ".").absolute() / ".autoopt",
        description="Folder for everything local; by default .autoopt in DAGSTER_HOME.",
    )
    config_store_url: str | None = Field(
        None,
        validation_alias=AliasChoices("AUTOOPT_CONFIG_STORE_URL", "CONFIG_STORE_URL"),
        description="Where tenants' configurations are: sqlite:///path or redis://host:port/db; by default SQLite.",
    )
    artifacts_url: str | None = Field(
        None, description="Where programs are kept: a folder or any fsspec URL; by default a folder."
    )
    modules_file: Path | None = Field(None, description="YAML file of modules of your own (docs/add-a-module.md).")
    phoenix_endpoint: str = Field(
        "http://localhost:6006",
        validation_alias=AliasChoices("AUTOOPT_PHOENIX_ENDPOINT", "PHOENIX_ENDPOINT"),
        description="Address of the Phoenix server.",
    )
    phoenix_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AUTOOPT_PHOENIX_API_KEY", "PHOENIX_API_KEY"),
        description="Its key, where it wants one.",
    )
    phoenix_timeout_seconds: float = Field(
        30, gt=0, description="Longest wait for one answer of Phoenix; pages and commands that read wait 4 s at most."
    )
    lm: str | None = Field(None, description="Default language model, e.g. openai/gpt-4o-mini, or stand-in.")
    lm_api_base: str | None = Field(None, description="Endpoint of the default language model.")
    lm_api_key_env: KeyVariable | None = Field(None, description="Name of the variable that holds the model's key.")
    teacher_lm: str | None = Field(None, description="Default model that writes instructions; by default the same.")
    teacher_lm_api_base: str | None = Field(None, description="Endpoint of the default teacher model.")
    teacher_lm_api_key_env: KeyVariable | None = Field(
        None, description="Name of the variable that holds the teacher's key."
    )
    sensor_interval_seconds: int = Field(60, ge=1, description="Least time between two looks at all tenants.")
    settling_seconds: float = Field(
        30, ge=0, description="How long after its start a trace is taken to be complete in Phoenix."
    )
    dagster_ui_url: str | None = Field(None, description="Address of the Dagster UI, e.g. http://localhost:3000.")
    dagster_api_url: str | None = Field(
        None, description="Address at which runs are handed to Dagster's webserver, where it is not that of its UI."
    )
    redaction: str = Field(
        "autoopt_pipeline.modules.redaction:redact",
        description="Function (package.module:function, text to text) that takes personal data out of what is learnt.",
    )
    max_launches_per_tick: int = Field(100, ge=1, description="Runs that one tick of the sensor may launch.")
    schedule_jitter: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the interval over which tenants are spread, so that they are not all due together.",
    )
    daily_lm_calls: int | None = Field(
        None, ge=0, description="Calls of language models for all tenants together in a day of UTC; no limit if unset."
    )
    daily_lm_tokens: int | None = Field(None, ge=0, description="The same in tokens.")
    run_retention_days: int = Field(
        30, ge=0, description="Days after which finished runs are deleted, but for the newest outcomes; 0: never."
    )

    alert_webhook_url: SecretStr | None = Field(None, description="Where alerts are posted as JSON (docs/alerts.md).")
    alert_webhook_secret: SecretStr | None = Field(None, description="Signs what is posted to the webhook.")
    alert_slack_url: SecretStr | None = Field(None, description="Slack's incoming webhook that gets the alerts.")
    alert_after_failures: int = Field(
        3, ge=1, description="Consecutive failures of a module, or failed ticks of a sensor, that raise an alert."
    )

    dashboard_token: SecretStr | None = Field(
        None, description="Opens the dashboard to whoever has it, as an operator of all tenants (docs/dashboard.md)."
    )
    dashboard_access: Path | None = Field(
        None, description="YAML file that says who may see and do what in the dashboard (docs/dashboard.md)."
    )

    @field_validator("phoenix_api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        if key and (why_not := _not_sendable(key.get_secret_value())):
            raise ValueError(why_not)
        return key

    @field_validator("lm_api_key_env", "teacher_lm_api_key_env")
    @classmethod
    def _names_a_key(cls, name: str | None) -> str | None:
        # Not told what it is: where the name of a key's variable belongs, somebody may have put the key.
        if name is not None and not KEY_VARIABLE.fullmatch(name):
            raise ValueError("has to be the name of a variable that ends with _API_KEY, and not the key")
        return name

    @field_validator("phoenix_endpoint", "dagster_ui_url", "dagster_api_url", "lm_api_base", "teacher_lm_api_base")
    @classmethod
    def _web_address(cls, address: str | None) -> str | None:
        if address is not None and not is_web_address(address):
            raise ValueError(f"{without_secrets(address)[:60]!r} is no address that begins with http:// or https://")
        return address

    @property
    def resolved_config_store_url(self) -> str:
        return self.config_store_url or f"sqlite:///{self.home / 'config.db'}"

    @property
    def resolved_dagster_ui_url(self) -> str:
        """Without a slash at the end; by default where 'autoopt up' starts the UI."""
        return (self.dagster_ui_url or "http://localhost:3000").rstrip("/")

    @property
    def resolved_dagster_api_url(self) -> str:
        return (self.dagster_api_url or self.resolved_dagster_ui_url).rstrip("/")

    @property
    def resolved_artifacts_url(self) -> str:
        return self.artifacts_url or str(self.home / "artifacts")

    @property
    def embedded(self) -> bool:
        """True when nothing was configured for production, so the offline stand-in may serve as default."""
        return self.config_store_url is None and self.artifacts_url is None


def load_settings() -> Settings:
    """Read the environment, and register the secrets in it. Raises `InvalidSettings` naming the variable."""
    protect_environment(os.environ)
    trusted_authorities()  # else the first connection fails, wherever that is
    try:
        settings = Settings()
    except ValidationError as e:
        first = e.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        name = name if name.startswith("AUTOOPT_") else f"AUTOOPT_{name}"
        if name not in os.environ and (other := name.removeprefix("AUTOOPT_")) in os.environ:
            name = other
        what = f"environment variable {name}: {what_is_wrong(first)}"
        raise InvalidSettings(what, f"correct or unset {name}") from None
    for address in (settings.alert_webhook_url, settings.alert_slack_url):
        if address:
            protect_address(address.get_secret_value(), path=True)
    return settings


def read_secret(variable: str) -> str | None:
    """The key that an environment variable holds, without space around it; None where it holds none.

    It is registered as a secret. Raises `InvalidSettings` where it cannot be sent over HTTP.
    """
    key = os.environ.get(variable, "").strip()
    return sendable_key(key, f"environment variable {variable}") if key else None


def sendable_key(key: str, where: str) -> str:
    """The key without space around it, registered as a secret. Raises `InvalidSettings` where HTTP cannot carry it."""
    key = key.strip()
    protect(key)
    if why_not := _not_sendable(key):
        raise InvalidSettings(f"{where}: {why_not}", "copy the key again, without what is invisible in it")
    return key


def _not_sendable(key: str) -> str:
    """What in a key a header of HTTP cannot carry, e.g. an invisible character that was copied with it."""
    for place, character in enumerate(key, 1):
        if not " " <= character <= "~":
            code = f"U+{ord(character):04X}"
            name = unicodedata.name(character, "")
            return f"character {place} of {len(key)} is {f'{name} ({code})' if name else code}, which HTTP cannot carry"
    return ""
