from dataclasses import replace
from datetime import timedelta

from autoopt_pipeline.dashboard.tasks import falls_of, tasks_of
from autoopt_pipeline.registry.quality_records import ModuleQuality, QualityFall
from autoopt_pipeline.scheduling.conditions import Attempts, Reason, RunOutcome, ScheduleDecision
from autoopt_pipeline.status.module_status import Health, ModuleStatus
from tests.support.sample_decisions import T0


def standing(tenant: str, verdict: str = "", reason: Reason = Reason.NOT_DUE) -> ModuleStatus:
    outcome = RunOutcome(T0, None, verdict) if verdict else None
    return ModuleStatus(tenant, "routing", ScheduleDecision(reason, ""), Attempts(outcome_at=T0), outcome)


def test_what_needs_a_person_is_named_worst_first_and_the_rest_is_counted() -> None:
    statuses = [standing(f"t{n}", "awaiting_approval") for n in (4, 1, 3, 2)]
    statuses += [standing("r", "awaiting_reviews"), standing("e", reason=Reason.ERROR), standing("fine", "promoted")]
    groups = tasks_of(statuses)
    assert [(group.health, group.count) for group in groups] == [
        (Health.FAILING, 1),
        (Health.NEEDS_APPROVAL, 4),
        (Health.NEEDS_REVIEWS, 1),
    ]
    assert [task.status.tenant_id for task in groups[1].named] == ["t1", "t2", "t3"]


def test_modules_of_a_tenant_that_failed_together_are_one_task() -> None:
    failed = [
        replace(standing(tenant, reason=Reason.ERROR), module=name) for tenant in "ab" for name in ("y", "x", "z")
    ]
    (group,) = tasks_of(failed)
    assert group.count == 6
    assert [(task.status.tenant_id, task.status.module, task.others) for task in group.named] == [
        ("a", "x", 2),
        ("b", "x", 2),
    ]


def test_where_nothing_needs_a_person_there_is_nothing_to_do() -> None:
    assert tasks_of([standing("fine", "promoted"), standing("off", "awaiting_approval", Reason.DISABLED)]) == []


def test_a_fall_is_named_until_an_optimization_has_ended_since() -> None:
    def fallen(tenant: str, hours: int) -> ModuleStatus:
        at = T0 + timedelta(hours=hours)
        fall = QualityFall(what="quality", at=at, since=at, before=0.9, after=0.7, outcomes=100, cause="one class")
        return replace(standing(tenant), quality=ModuleQuality(version=None, fall=fall))

    statuses = [fallen("first", 1), fallen("newest", 2), fallen("learnt since", -1), standing("fine")]
    assert [status.tenant_id for status in falls_of(statuses)] == ["newest", "first"]
