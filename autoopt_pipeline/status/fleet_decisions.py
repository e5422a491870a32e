"""The decisions about a fleet from one refresh to the next, so that only those that may have changed are made anew."""

from collections.abc import Collection
from dataclasses import dataclass, field

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.orchestration.planner import WHOLE_TENANT, Plan
from autoopt_pipeline.run_history.outcomes import ModuleKey
from autoopt_pipeline.scheduling.conditions import Attempts, ScheduleDecision
from autoopt_pipeline.scheduling.fleet_memory import FleetMemory


@dataclass
class FleetDecisions:
    """The decisions and attempts of every module at the last plan with this `memory`.

    Times in their words are as of when the decision was made.
    """

    memory: FleetMemory = field(default_factory=FleetMemory)
    decisions: dict[ModuleKey, ScheduleDecision] = field(default_factory=dict)
    attempts: dict[ModuleKey, Attempts] = field(default_factory=dict)

    def take(self, plan: Plan, tenants: Collection[str]) -> None:
        """Take what a plan has decided anew, and forget tenants and modules that are gone."""
        unreadable = {tenant for tenant, module in plan.decisions if module == WHOLE_TENANT}

        def is_there(key: ModuleKey) -> bool:
            tenant, module = key
            if tenant not in tenants or tenant in unreadable:
                return False
            config = plan.configs.get(tenant)
            return config is None or module in modules() or module in config.modules

        kept = {key: decision for key, decision in self.decisions.items() if is_there(key)}
        self.decisions = dict(sorted((kept | plan.decisions).items()))
        attempts = {key: attempt for key, attempt in self.attempts.items() if key[0] not in plan.configs}
        self.attempts = {key: each for key, each in (attempts | plan.attempts).items() if key in self.decisions}
