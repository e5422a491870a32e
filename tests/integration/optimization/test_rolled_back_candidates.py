"""What was rolled back does not come back by itself, whichever way a run would bring it."""

from dataclasses import replace

from autoopt_pipeline.evaluation.sequential_test_log import SequentialTestConditions, find_open_test
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.optimizing import decisions, job, stand_in
from tests.support.sequential_tests import begin_test
from tests.support.stored_programs import made_program, store


def test_a_finalist_that_was_rolled_back_is_rejected_before_the_holdout_is_looked_at(
    artifacts: VersionStore,
) -> None:
    traffic = decisions(450)
    first = optimize(job(traffic), stand_in(), artifacts)
    assert first.verdict is Verdict.PROMOTED
    artifacts.transition(None, expected=first.version, actor="marta", reason="it annoys people")
    charged, versions = artifacts.ledger(), artifacts.versions()
    again = optimize(job(traffic, run_id="again"), stand_in(), artifacts)
    assert again.verdict is Verdict.REJECTED
    assert f"the same program was rolled back: {first.version}" in again.reason
    assert "by marta (it annoys people)" in again.reason
    assert again.gate is None
    assert (artifacts.ledger(), artifacts.versions()) == (charged, versions)
    assert artifacts.active() is None
    assert again.incumbent_version is None


def test_a_finalist_that_a_person_declined_is_rejected_before_the_holdout_is_looked_at(
    artifacts: VersionStore,
) -> None:
    traffic = decisions(450)
    manual = job(traffic)
    manual = replace(manual, config=manual.config.model_copy(update={"mode": "propose"}))
    first = optimize(manual, stand_in(), artifacts)
    assert first.verdict is Verdict.AWAITING_APPROVAL
    assert first.version
    artifacts.decline(first.version, actor="marta", reason="it annoys people")
    charged = artifacts.ledger()
    again = optimize(replace(manual, run_id="again"), stand_in(), artifacts)
    assert again.verdict is Verdict.REJECTED
    assert f"the same program was declined: {first.version}" in again.reason
    assert "by marta (it annoys people)" in again.reason
    assert artifacts.ledger() == charged


def test_a_trial_ends_when_the_same_program_was_rolled_back_under_another_name(artifacts: VersionStore) -> None:
    program = made_program("acme", demos=["find it"])
    approved, waiting = store(artifacts, program, 1), store(artifacts, program, 2)
    conditions = SequentialTestConditions(None, "stand-in", ("search_agent", "report_agent"))
    begin_test(artifacts, waiting, conditions)
    assert find_open_test(artifacts, conditions) is not None
    artifacts.transition(approved, expected=None, actor="marta", reason="looks good")
    artifacts.transition(None, expected=approved, actor="marta", reason="it annoys people")
    assert find_open_test(artifacts, conditions) is None
