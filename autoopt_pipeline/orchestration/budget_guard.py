"""Daily LM budgets in a run: what remains for a step, and the usage of attempts without an outcome."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from autoopt_pipeline.errors import BudgetTooSmall, DailyBudgetSpent
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.run_history.lm_usage import read_usage, report_usage
from autoopt_pipeline.run_history.runs import selected_modules
from autoopt_pipeline.scheduling.budgets import LMUsage, RemainingBudget, utc_day_start
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import Budget, DailyBudget, RoutingConfigUnified

if TYPE_CHECKING:
    from autoopt_pipeline.lm.metering import Meter

_NO_LIMIT = DailyBudget()
_REMEDY = "wait for the next day of UTC, or raise the daily budget"
_REMEDY_OF_RUNS = "wait for the next day of UTC, raise the daily budget, or start a run with force"


def daily_budget_of_all(settings: Settings) -> DailyBudget:
    """Return the daily budget of all tenants together."""
    return DailyBudget(
        max_lm_calls=settings.daily_lm_calls,
        max_tokens=settings.daily_lm_tokens,
        max_dollars=settings.daily_lm_dollars,
    )


def remaining_budgets(
    instance: dg.DagsterInstance, configs: Collection[RoutingConfigUnified], settings: Settings, *, now: datetime
) -> dict[str, tuple[RemainingBudget, ...]]:
    """What remains today for each tenant, of its own budget and of that of all. Without a budget, nothing is read."""
    overall = daily_budget_of_all(settings)
    limits = {config.tenant_id: config.daily_budget for config in configs if config.daily_budget != _NO_LIMIT}
    if overall == _NO_LIMIT and not limits:
        return {}
    tenants = limits if overall == _NO_LIMIT else None
    used = read_usage(instance, modules(), since=utc_day_start(now), tenants=tenants)
    own: dict[str, tuple[RemainingBudget, ...]] = {
        tenant: (RemainingBudget("this tenant", limit, used.get(tenant, LMUsage())),)
        for tenant, limit in limits.items()
    }
    if overall == _NO_LIMIT:
        return own
    shared = RemainingBudget("all tenants together", overall, sum(used.values(), LMUsage()))
    return {config.tenant_id: (*own.get(config.tenant_id, ()), shared) for config in configs}


def cap_to_day(
    instance: dg.DagsterInstance,
    config: RoutingConfigUnified,
    settings: Settings,
    modules_at_once: int = 1,
    *,
    remedy: str = _REMEDY,
) -> Budget:
    """The tenant's budget of a run, or its part of what remains of the day where that is less.

    Raises `DailyBudgetSpent` when nothing remains.
    """
    budget = config.budget
    for daily in remaining_budgets(instance, [config], settings, now=datetime.now(UTC)).get(config.tenant_id, ()):
        if daily.exhausted_reason:
            raise DailyBudgetSpent(f"tenant {config.tenant_id}: {daily.exhausted_reason}", remedy)
        budget = daily.cap(budget, modules_at_once)
    return budget


def budget_today(
    context: dg.AssetExecutionContext, config: RoutingConfigUnified, settings: Settings, *, force: bool
) -> Budget:
    """What a step may use, as in `cap_to_day`. With `force` the day does not count."""
    if force:
        return config.budget
    # Modules of a run that go side by side know nothing of what the others are spending.
    side_by_side = len(selected_modules(context.run).intersection(modules())) or 1
    budget = cap_to_day(context.instance, config, settings, side_by_side, remedy=_REMEDY_OF_RUNS)
    if budget != config.budget:
        dollars = "" if budget.max_dollars is None else f" and ${budget.max_dollars:.2f}"
        context.log.info(f"left of the day: {budget.max_lm_calls} LM calls and {budget.max_tokens} tokens{dollars}")
    return budget


@contextmanager
def attribute_to_daily_budget(config: RoutingConfigUnified, budget: Budget) -> Generator[None, None, None]:
    """Raise `DailyBudgetSpent` where a budget is too small because of what remains of the day."""
    try:
        yield
    except BudgetTooSmall as e:
        if budget == config.budget:
            raise
        what = f"tenant {config.tenant_id}: what is left of the day's budget decides nothing: {e.what}"
        raise DailyBudgetSpent(what, _REMEDY_OF_RUNS) from None


@contextmanager
def record_usage_on_failure(
    context: dg.AssetExecutionContext, module: str, meter: "Meter"
) -> Generator[None, None, None]:
    """Report the usage of an attempt that fails or is cancelled, so that it counts for the day."""
    try:
        yield
    except BaseException as e:
        if meter.calls:
            report_usage(
                context.instance,
                context.partition_key,
                module,
                LMUsage(meter.calls, meter.tokens, meter.known_dollars),
                run_id=context.run.run_id,
                reason=scrub(str(e)) or "the run was stopped",
            )
        raise
