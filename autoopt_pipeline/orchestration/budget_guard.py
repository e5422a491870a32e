"""The day's budget for language models: what it leaves, and what an attempt spends of it."""

from collections.abc import Collection, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from autoopt_pipeline.errors import BudgetTooSmall, DailyBudgetSpent
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.run_history.outcomes import read_spending, report_spent
from autoopt_pipeline.run_history.runs import selected_modules
from autoopt_pipeline.scheduling.limits import Allowance, Spending, midnight
from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.settings import Settings
from autoopt_pipeline.tenants.config import Budget, DailyBudget, RoutingConfigUnified

if TYPE_CHECKING:
    from autoopt_pipeline.lm.metering import Meter

_NO_LIMIT = DailyBudget()
_REMEDY = "wait for the next day of UTC, raise the daily budget, or start a run with force"


def allowances(
    instance: dg.DagsterInstance, configs: Collection[RoutingConfigUnified], settings: Settings, *, now: datetime
) -> dict[str, tuple[Allowance, ...]]:
    """What bounds each tenant's spending today: its own budget, and that of all. Asks nothing where nothing does."""
    overall = DailyBudget(max_lm_calls=settings.daily_lm_calls, max_tokens=settings.daily_lm_tokens)
    own = {config.tenant_id: config.daily_budget for config in configs if config.daily_budget != _NO_LIMIT}
    if overall == _NO_LIMIT and not own:
        return {}
    spent = read_spending(instance, modules(), since=midnight(now), tenants=own if overall == _NO_LIMIT else None)
    found: dict[str, tuple[Allowance, ...]] = {
        tenant: (Allowance("this tenant", limit, spent.get(tenant, Spending())),) for tenant, limit in own.items()
    }
    if overall == _NO_LIMIT:
        return found
    shared = Allowance("all tenants together", overall, sum(spent.values(), Spending()))
    return {config.tenant_id: (*found.get(config.tenant_id, ()), shared) for config in configs}


def budget_today(
    context: dg.AssetExecutionContext, config: RoutingConfigUnified, settings: Settings, *, force: bool
) -> Budget:
    """What a step may spend: the run's budget, or its part of what is left of the day where that is less.

    Raises `DailyBudgetSpent` when nothing is left. With `force` the day does not count.
    """
    budget = config.budget
    if force:
        return budget
    # Modules of a run that go side by side know nothing of what the others are spending.
    side_by_side = len(selected_modules(context.run).intersection(modules())) or 1
    for limit in allowances(context.instance, [config], settings, now=datetime.now(UTC)).get(config.tenant_id, ()):
        if limit.used_up:
            raise DailyBudgetSpent(f"tenant {config.tenant_id}: {limit.used_up}", _REMEDY)
        budget = limit.lowered(budget, side_by_side)
    if budget != config.budget:
        context.log.info(f"left of the day: {budget.max_lm_calls} LM calls and {budget.max_tokens} tokens")
    return budget


@contextmanager
def blaming_the_day(config: RoutingConfigUnified, budget: Budget) -> Generator[None, None, None]:
    """Where a budget is too small, and the day's remainder made it so, say that."""
    try:
        yield
    except BudgetTooSmall as e:
        if budget == config.budget:
            raise
        what = f"tenant {config.tenant_id}: what is left of the day's budget decides nothing: {e.what}"
        raise DailyBudgetSpent(what, _REMEDY) from None


@contextmanager
def accounted(context: dg.AssetExecutionContext, module: str, meter: "Meter") -> Generator[None, None, None]:
    """An attempt that ends without an outcome, failed or canceled, leaves what it had spent in the event log."""
    try:
        yield
    except BaseException as e:
        if meter.calls:
            report_spent(
                context.instance,
                context.partition_key,
                module,
                Spending(meter.calls, meter.tokens),
                run_id=context.run.run_id,
                reason=scrub(str(e)) or "the run was stopped",
            )
        raise
