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
from autoopt_pipeline.validation import describe_error

# Names of the environment variables that may hold a language model's key.
KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_API_KEY")

# Name of the offline model that answers from the nearest demo. No real language model has this name.
STAND_IN = "stand-in"

# Dollars for a million tokens of input and output, and of input from the prompt cache: 0.15/0.6 or 0.15/0.6/0.075.
PRICE = re.compile(r"[0-9]+(\.[0-9]+)?(/[0-9]+(\.[0-9]+)?){1,2}")

# The chart's schema includes the pattern, so Helm refuses a wrong name before a process reads it.
KeyVariable = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{KEY_VARIABLE.pattern}$"})]
PriceText = Annotated[str, WithJsonSchema({"type": "string", "pattern": f"^{PRICE.pattern}$"})]


class Settings(BaseSettings):
    """Addresses, keys and limits of one deployment. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="AUTOOPT_",
        extra="ignore",
        env_ignore_empty=True,
        frozen=True,
        populate_by_name=True,
        # Secrets often end with a line break, both keys and addresses with a password.
        str_strip_whitespace=True,
    )

    home: Path = Field(
        default_factory=lambda: Path(os.environ.get("DAGSTER_HOME") or ".").absolute() / ".autoopt",
        description="Folder for all local files; by default .autoopt in DAGSTER_HOME.",
    )
    config_store_url: str | None = Field(
        None,
        validation_alias=AliasChoices("AUTOOPT_CONFIG_STORE_URL", "CONFIG_STORE_URL"),
        description="Store of the tenants' configurations: sqlite:///path or redis://host:port/db; by default SQLite.",
    )
    artifacts_url: str | None = Field(
        None, description="Store of the programs: a folder or any fsspec URL; by default a folder."
    )
    modules_file: Path | None = Field(None, description="YAML file of modules of your own (docs/add-a-module.md).")
    encoder: Path | None = Field(
        None, description="Folder of a sentence encoder, which local routers then use (docs/modules.md)."
    )
    phoenix_endpoint: str = Field(
        "http://localhost:6006",
        validation_alias=AliasChoices("AUTOOPT_PHOENIX_ENDPOINT", "PHOENIX_ENDPOINT"),
        description="Address of the Phoenix server.",
    )
    phoenix_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("AUTOOPT_PHOENIX_API_KEY", "PHOENIX_API_KEY"),
        description="Key of the Phoenix server, if it requires one.",
    )
    phoenix_timeout_seconds: float = Field(
        30,
        gt=0,
        description="Longest wait for one answer of Phoenix; pages and commands that only read wait at most 4 s.",
    )
    lm: str | None = Field(None, description="Default language model, e.g. openai/gpt-4o-mini, or stand-in.")
    lm_api_base: str | None = Field(None, description="Endpoint of the default language model.")
    lm_api_key_env: KeyVariable | None = Field(None, description="Name of the variable that holds the model's key.")
    lm_price: PriceText | None = Field(
        None,
        description="Price of the default language model, if LiteLLM's table lacks it: dollars for a million input and "
        "output tokens, and cached input tokens, e.g. 0.15/0.6/0.075.",
    )
    teacher_lm: str | None = Field(
        None, description="Default model that writes instructions and demos; by default the default language model."
    )
    teacher_lm_api_base: str | None = Field(None, description="Endpoint of the default teacher model.")
    teacher_lm_api_key_env: KeyVariable | None = Field(
        None, description="Name of the variable that holds the teacher's key."
    )
    teacher_lm_price: PriceText | None = Field(None, description="Price of the default teacher, as AUTOOPT_LM_PRICE.")
    sensor_interval_seconds: int = Field(60, ge=1, description="Shortest time between two ticks of a sensor.")
    settling_seconds: float = Field(
        30, ge=0, description="Time after its start at which a trace counts as complete in Phoenix."
    )
    dagster_ui_url: str | None = Field(None, description="Address of the Dagster UI, e.g. http://localhost:3000.")
    dagster_api_url: str | None = Field(
        None, description="Address of Dagster's webserver for launching runs, if it differs from the UI's."
    )
    redaction: str = Field(
        "autoopt_pipeline.modules.redaction:redact",
        description="Function (package.module:function, text to text) that removes personal data from examples.",
    )
    max_launches_per_tick: int = Field(1000, ge=1, description="Runs that one tick of the sensor may launch.")
    schedule_jitter: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Fraction of the interval over which tenants are spread, so that they are not all due at once.",
    )
    daily_lm_calls: int | None = Field(
        None,
        ge=0,
        description="Calls to language models for all tenants together in one day (UTC); by default no limit.",
    )
    daily_lm_tokens: int | None = Field(
        None, ge=0, description="Tokens for all tenants together in one day (UTC); by default no limit."
    )
    daily_lm_dollars: float | None = Field(
        None, ge=0, description="Dollars for all tenants together in one day (UTC); by default no limit."
    )
    run_retention_days: int = Field(
        30,
        ge=0,
        description="Days after which finished runs are deleted, except those with the newest outcomes; 0: never.",
    )

    alert_webhook_url: SecretStr | None = Field(
        None, description="Address to which alerts are posted as JSON (docs/alerts.md)."
    )
    alert_webhook_secret: SecretStr | None = Field(None, description="Key that signs the posts to the webhook.")
    alert_slack_url: SecretStr | None = Field(None, description="Slack's incoming webhook that receives the alerts.")
    alert_after_failures: int = Field(
        3, ge=1, description="Consecutive failures of a module, or failed ticks of a sensor, that raise an alert."
    )

    dashboard_token: SecretStr | None = Field(
        None, description="Token that signs in to the dashboard as an operator of all tenants (docs/dashboard.md)."
    )
    dashboard_access: Path | None = Field(
        None, description="YAML file with the dashboard's access rules (docs/dashboard.md)."
    )

    @field_validator("phoenix_api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        if key and (problem := _unsendable_character(key.get_secret_value())):
            raise ValueError(problem)
        return key

    @field_validator("lm_api_key_env", "teacher_lm_api_key_env")
    @classmethod
    def _names_a_key(cls, name: str | None) -> str | None:
        # The error does not quote the value, because somebody may have put the key itself here.
        if name is not None and not KEY_VARIABLE.fullmatch(name):
            raise ValueError("has to be the name of a variable that ends with _API_KEY, not the key")
        return name

    @field_validator("lm_price", "teacher_lm_price")
    @classmethod
    def _is_a_price(cls, price: str | None) -> str | None:
        if price is not None and not PRICE.fullmatch(price):
            raise ValueError(f"{price[:60]!r} is not a price in dollars for a million tokens, such as 0.15/0.6/0.075")
        return price

    @field_validator("phoenix_endpoint", "dagster_ui_url", "dagster_api_url", "lm_api_base", "teacher_lm_api_base")
    @classmethod
    def _web_address(cls, address: str | None) -> str | None:
        if address is not None and not is_web_address(address):
            raise ValueError(f"{without_secrets(address)[:60]!r} does not begin with http:// or https://")
        return address

    @property
    def resolved_config_store_url(self) -> str:
        return self.config_store_url or f"sqlite:///{self.home / 'config.db'}"

    @property
    def resolved_dagster_ui_url(self) -> str:
        """The address without a final slash; by default the one at which 'autoopt up' starts the UI."""
        return (self.dagster_ui_url or "http://localhost:3000").rstrip("/")

    @property
    def resolved_dagster_api_url(self) -> str:
        return (self.dagster_api_url or self.resolved_dagster_ui_url).rstrip("/")

    @property
    def resolved_artifacts_url(self) -> str:
        return self.artifacts_url or str(self.home / "artifacts")

    @property
    def embedded(self) -> bool:
        """True without any configured store, so the offline stand-in may be the default language model."""
        return self.config_store_url is None and self.artifacts_url is None


def load_settings() -> Settings:
    """Read the environment, and register its secrets. Raises `InvalidSettings` with the name of the variable."""
    protect_environment(os.environ)
    trusted_authorities()  # a wrong file would otherwise fail the first connection, in any part of the program
    try:
        settings = Settings()
    except ValidationError as e:
        first = e.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        name = name if name.startswith("AUTOOPT_") else f"AUTOOPT_{name}"
        if name not in os.environ and (other := name.removeprefix("AUTOOPT_")) in os.environ:
            name = other
        what = f"environment variable {name}: {describe_error(first)}"
        raise InvalidSettings(what, f"correct or unset {name}") from None
    for address in (settings.alert_webhook_url, settings.alert_slack_url):
        if address:
            protect_address(address.get_secret_value(), path=True)
    return settings


def read_secret(variable: str) -> str | None:
    """Read a key from an environment variable, without surrounding space, and register it as a secret.

    Returns None if the variable is not set or empty. Raises `InvalidSettings` if HTTP cannot carry the key.
    """
    key = os.environ.get(variable, "").strip()
    return sendable_key(key, f"environment variable {variable}") if key else None


def sendable_key(key: str, where: str) -> str:
    """Strip a key and register it as a secret. Raises `InvalidSettings` if HTTP cannot carry it."""
    key = key.strip()
    protect(key)
    if problem := _unsendable_character(key):
        raise InvalidSettings(f"{where}: {problem}", "copy the key again, without invisible characters")
    return key


def _unsendable_character(key: str) -> str:
    """The first character of a key that an HTTP header cannot carry, often an invisible one; "" if there is none."""
    for place, character in enumerate(key, 1):
        if not " " <= character <= "~":
            code = f"U+{ord(character):04X}"
            name = unicodedata.name(character, "")
            return f"character {place} of {len(key)} is {f'{name} ({code})' if name else code}, which HTTP cannot carry"
    return ""
