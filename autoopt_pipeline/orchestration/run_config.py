"""What one run may be told to do otherwise than its tenant's configuration says. Shown in Dagster's launchpad."""

from typing import Any

import dagster as dg
from pydantic import Field

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.text import did_you_mean


class BudgetOverride(dg.Config):
    """What is not set is as configured."""

    max_lm_calls: int | None = Field(None, description="Most calls of language models.")
    max_tokens: int | None = Field(None, description="Most tokens.")


class LMOverride(dg.Config):
    """Stands in the place of the tenant's `lm` as a whole."""

    model: str = Field(description="As DSPy names it, e.g. openai/gpt-4o-mini; or stand-in.")
    api_base: str | None = Field(None, description="Endpoint, for servers that speak the OpenAI protocol.")
    api_key_env: str | None = Field(None, description="Environment variable that holds the key; it ends with _API_KEY.")


# Bounds are checked where those of the configuration are: Dagster would print a stack and no line.
class RunOverrides(dg.Config):
    """Only for this run. What is not set is as the tenant's configuration says."""

    budget: BudgetOverride = Field(BudgetOverride(), description="What the run may spend at most for this module.")
    lm: LMOverride | None = Field(
        None, description="Another language model. A candidate that waits is tried with its own model only."
    )
    optimizer: str | None = Field(
        None,
        description="Only candidates of this one race: start, coverage, labeled-few-shot, bootstrap-few-shot, gepa or "
        "miprov2.",
    )
    force: bool = Field(
        False, description="Spend although the day's budget is used up. What is spent counts all the same."
    )

    def given(self) -> dict[str, Any]:
        """What was set."""
        found = _without_none(self.model_dump())
        return {name: value for name, value in found.items() if value not in ({}, False)}

    def applied_to(self, config: RoutingConfigUnified) -> RoutingConfigUnified:
        """The configuration for this run. Raises `InvalidConfig` where something cannot be."""
        from autoopt_pipeline.optimization.optimizers import OPTIMIZERS

        where = f"run config of tenant {config.tenant_id}"
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS:
            raise InvalidConfig(
                f"{where}: unknown optimizer {self.optimizer[:60]!r}",
                did_you_mean(self.optimizer, OPTIMIZERS, "known"),
            )
        data, given = config.model_dump(), self.given()
        data["budget"] |= given.get("budget", {})
        return parse_config(data | {name: given[name] for name in ("lm",) if name in given}, where=where)


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in data.items()
        if value is not None
    }
