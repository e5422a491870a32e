"""Run config: what one run may do differently from its tenant's configuration. Dagster's launchpad shows it."""

from typing import Any

import dagster as dg
from pydantic import Field

from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.text import did_you_mean


class BudgetOverride(dg.Config):
    """Unset fields are as configured."""

    max_lm_calls: int | None = Field(None, description="Most calls of language models.")
    max_tokens: int | None = Field(None, description="Most tokens.")
    max_dollars: float | None = Field(None, description="Most dollars.")


class LMOverride(dg.Config):
    """Replaces the tenant's `lm` as a whole."""

    model: str = Field(description="As DSPy names it, e.g. openai/gpt-4o-mini; or stand-in.")
    api_base: str | None = Field(None, description="Endpoint, for servers that speak the OpenAI protocol.")
    api_key_env: str | None = Field(None, description="Environment variable that holds the key; it ends with _API_KEY.")


# Bounds are checked with those of the configuration, because Dagster would print a stack instead of one line.
class RunOverrides(dg.Config):
    """Only for this run. Unset fields are as the tenant's configuration has them."""

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
        """The fields that were set."""
        fields = _without_none(self.model_dump())
        return {name: value for name, value in fields.items() if value not in ({}, False)}

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
        if self.lm:
            data["candidate_lms"] = [lm for lm in data["candidate_lms"] if lm["model"] != self.lm.model]
        return parse_config(data | {name: given[name] for name in ("lm",) if name in given}, where=where)


def _without_none(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, dict) else value
        for name, value in data.items()
        if value is not None
    }
