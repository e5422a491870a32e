"""What a platform engineer does with a tenant's program versions, as they type it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.command_line import AGENTS, autoopt
from tests.support.project import PROJECT
from tests.support.sequential_tests import made_step
from tests.support.stored_programs import FAST, SLOW, made_program, store

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def artifacts(home: Path) -> VersionStore:
    autoopt("tenants", "add", "acme", *AGENTS)
    return VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), "acme", "routing")


def make(artifacts: VersionStore, number: int, *, active: bool = True, verdict: str = "promoted") -> str:
    """The version of minute `number`, which shows the model demo number `number` and the one before."""
    demos = [f"find thing {number - 1}", f"find thing {number}"]
    program = made_program("acme", demos=demos, instructions={"decide": f"Choose well.\nThink {number} times."})
    return store(artifacts, program, number, active=active, changes={"verdict": verdict, "reason": f"reason {number}"})


@pytest.fixture
def three(artifacts: VersionStore) -> list[str]:
    """Three versions, each active after the one before."""
    return [make(artifacts, number) for number in (1, 2, 3)]


def active(artifacts: VersionStore) -> str | None:
    found = artifacts.active()
    return found.version if found else None


def test_a_rollback_goes_back_step_by_step_down_to_the_baseline(artifacts: VersionStore, three: list[str]) -> None:
    one, two, three_ = three
    assert autoopt("rollback", "acme", "routing", "--reason", "slow") == f"acme/routing: {three_} -> {two}\n"
    assert autoopt("rollback", "acme", "routing") == f"acme/routing: {two} -> {one}\n"
    assert autoopt("rollback", "acme", "routing") == f"acme/routing: {one} -> baseline\n"
    assert active(artifacts) is None
    assert "there is nothing to go back to" in autoopt("rollback", "acme", "routing", status=2)
    assert [(transition.from_version, transition.to_version) for transition in artifacts.transitions()[3:]] == [
        (three_, two),
        (two, one),
        (one, None),
    ]
    assert artifacts.transitions()[3].reason == "slow"
    assert autoopt("versions", "acme", "routing").count("rolled back 20") == 3


def test_after_a_rollback_to_the_baseline_a_version_can_be_promoted_and_left_again(
    artifacts: VersionStore, three: list[str]
) -> None:
    autoopt("rollback", "acme", "routing", "--to", "baseline", "--reason", "all of them annoy people")
    assert active(artifacts) is None
    said = autoopt("promote", "acme", "routing", three[1])
    assert f"baseline -> {three[1]}" in said
    assert "note: it was rolled back on" in said
    assert "all of them annoy people" in said
    assert active(artifacts) == three[1]
    assert "-> baseline" in autoopt("rollback", "acme", "routing")


def test_a_promotion_by_hand_is_watched_as_configured_unless_said_otherwise(
    artifacts: VersionStore, three: list[str]
) -> None:
    four = make(artifacts, 4, active=False)
    assert f"{three[2]} -> {four}, with 10 % of requests for {three[2]}" in autoopt("promote", "acme", "routing", four)
    assert "10 % of requests" in autoopt("versions", "acme", "routing")
    assert f"{four} -> {four}\n" in autoopt("promote", "acme", "routing", four, "--no-monitor")
    assert "is active already" in autoopt("promote", "acme", "routing", four, "--no-monitor", status=2)
    autoopt("config", "set", "acme", "rollout.monitor=false")
    five = make(artifacts, 5, active=False)
    assert f"{four} -> {five}\n" in autoopt("promote", "acme", "routing", five)


def test_a_canary_by_hand_gets_its_share_and_a_rollback_gives_it_up(artifacts: VersionStore, three: list[str]) -> None:
    autoopt("config", "set", "acme", "rollout.monitor=false")
    four = make(artifacts, 4, active=False)
    said = autoopt("promote", "acme", "routing", four, "--canary", "0.25")
    assert f"{three[2]} -> {three[2]}, with 25 % of requests for {four}" in said
    assert active(artifacts) == three[2]
    assert autoopt("rollback", "acme", "routing") == f"acme/routing: {three[2]} -> {three[2]}\n"
    assert "rolled back" in autoopt("show", "acme", "routing", four)
    assert "with 25 % of requests" in autoopt("history", "acme", "routing")
    refused = autoopt("promote", "acme", "routing", four, "--canary", "0.25", "--no-monitor", status=2)
    assert "a canary that is not monitored" in refused


def test_a_rollback_to_a_named_version_leaves_all_that_came_after(artifacts: VersionStore, three: list[str]) -> None:
    assert autoopt("rollback", "acme", "routing", "--to", three[0]) == f"acme/routing: {three[2]} -> {three[0]}\n"
    refused = autoopt("rollback", "acme", "routing", "--to", three[1], status=2)
    assert "was rolled back on" in refused
    assert f"autoopt promote acme routing {three[1]}" in refused
    never = make(artifacts, 4, active=False)
    assert "was never active" in autoopt("rollback", "acme", "routing", "--to", never, status=2)
    assert "is active already" in autoopt("rollback", "acme", "routing", "--to", three[0], status=2)
    assert len(artifacts.transitions()) == 4


def test_a_withdrawn_version_is_passed_over(artifacts: VersionStore, three: list[str]) -> None:
    artifacts.withdraw(three[1], actor="marta", reason="a trace was forgotten")
    assert "a trace was forgotten" in autoopt("rollback", "acme", "routing", "--to", three[1], status=2)
    assert "a trace was forgotten" in autoopt("promote", "acme", "routing", three[1], status=2)
    assert f"{three[0]} -> {three[2]}" in autoopt("diff", "acme", "routing")
    assert autoopt("rollback", "acme", "routing") == f"acme/routing: {three[2]} -> {three[0]}\n"


def test_what_was_made_for_another_signature_cannot_be_made_active(artifacts: VersionStore, three: list[str]) -> None:
    program = made_program("acme", demos=["find it"]).model_copy(update={"fingerprint": "another"})
    foreign = store(artifacts, program, 9)
    for command in (["promote", "acme", "routing", foreign], ["promote", "acme", "routing", foreign, "--force"]):
        refused = autoopt(*command, status=2)
        assert f"made for another signature of the module ({foreign})" in refused
    assert active(artifacts) == three[2]


@pytest.mark.parametrize(("verdict", "words"), [("rejected", "was rejected"), ("inconclusive", "is not proven yet")])
def test_what_is_not_proven_is_made_active_only_for_who_insists(
    artifacts: VersionStore, three: list[str], verdict: str, words: str
) -> None:
    unproven = make(artifacts, 4, active=False, verdict=verdict)
    refused = autoopt("promote", "acme", "routing", unproven, status=2)
    assert f"{words}: reason 4" in refused
    assert "--force" in refused
    assert active(artifacts) == three[2]
    autoopt("promote", "acme", "routing", unproven, "--force", "--reason", "I am sure")
    assert active(artifacts) == unproven
    autoopt("promote", "acme", "routing", three[0])
    autoopt("promote", "acme", "routing", unproven)  # somebody insisted before


def test_what_waits_for_approval_can_be_declined_once_and_still_be_promoted(
    artifacts: VersionStore, three: list[str]
) -> None:
    proposed = make(artifacts, 4, active=False, verdict="awaiting_approval")
    said = autoopt("decline", "acme", "routing", proposed, "--reason", "too slow")
    assert said == f"acme/routing: {proposed} is declined\n"
    assert active(artifacts) == three[2]
    listed = json.loads(autoopt("versions", "acme", "routing", "--json"))["versions"]
    assert [(each["verdict"], each["declined"] and each["declined"]["reason"]) for each in listed][3:] == [
        ("declined", "too slow")
    ]
    assert "does not need approval: it is declined" in autoopt("decline", "acme", "routing", proposed, status=2)
    assert "it is active" in autoopt("decline", "acme", "routing", three[2], status=2)
    assert "note: it was declined on" in autoopt("promote", "acme", "routing", proposed)


def test_what_a_trial_has_proven_needs_no_insisting(artifacts: VersionStore, three: list[str]) -> None:
    candidate = make(artifacts, 4, active=False, verdict="inconclusive")
    for sequence, verdict in enumerate(("inconclusive", "awaiting_approval"), start=1):
        step = made_step(candidate, sequence, verdict=verdict, incumbent=three[2], at=NOW)
        artifacts.add_sequential_test_step(step)
    assert "awaiting_approval" in autoopt("versions", "acme", "routing")
    autoopt("promote", "acme", "routing", candidate)
    assert active(artifacts) == candidate


def test_what_was_compared_with_something_else_is_promoted_and_said_so(
    artifacts: VersionStore, three: list[str]
) -> None:
    late = make(artifacts, 4, active=False)
    assert re.search(rf"{late}.*stale", autoopt("versions", "acme", "routing"))
    assert "note: it was compared with baseline, which was not active" in autoopt("promote", "acme", "routing", late)


def test_promoting_what_is_active_changes_nothing(artifacts: VersionStore, three: list[str]) -> None:
    assert "is active already" in autoopt("promote", "acme", "routing", three[2], status=2)
    assert len(artifacts.transitions()) == 3


def test_the_history_says_who_moved_what_when_and_why(artifacts: VersionStore, three: list[str]) -> None:
    autoopt("rollback", "acme", "routing", "--to", "baseline", "--reason", "[red] slow")
    said = autoopt("history", "acme", "routing")
    transition = artifacts.transitions()[-1]
    assert f"4  {transition.at:%Y-%m-%d %H:%M:%S} UTC  {three[2]} -> baseline" in said
    assert f"by {transition.actor}: [red] slow" in said
    assert said.count(" -> ") == 4


def test_a_version_is_shown_cut_short_or_in_full(artifacts: VersionStore, three: list[str]) -> None:
    long = store(artifacts, made_program("acme", demos=[f"find {'very ' * 60}thing {n}" for n in range(20)]), 5)
    short, full = (autoopt("show", "acme", "routing", long, *flag) for flag in ([], ["--full"]))
    assert "20 demos" in short
    assert "15 more; --full shows them" in short
    assert "thing 0" not in short
    assert "thing 19" in full
    shown = autoopt("show", "acme", "routing")
    for words in (three[2], "active", "reason 3", "10.0 -> 90.0 %", "coverage-16", "Think 3 times.", "find thing 3"):
        assert words in shown


def test_what_decisions_and_the_run_cost_is_shown_and_compared(artifacts: VersionStore, three: list[str]) -> None:
    tried = [{"optimizer": "coverage-16", "dev_score": 0.5, "cost": FAST.model_dump()}, {"optimizer": "start"}]
    changes = {"costs": {"incumbent": SLOW, "candidate": FAST}, "lm_dollars": 0.25, "tried": tried}
    four = store(artifacts, made_program("acme", demos=["find thing 4"]), 4, active=True, changes=changes)
    shown = autoopt("show", "acme", "routing")
    assert "a decision costs 312 tokens, about $0.00012, and takes 0.4 s (p95 0.9 s); the incumbent's 2,950" in shown
    assert "0 written; about $0.25" in shown
    assert "312 tokens, about $0.00012, 0.4 s (p95 0.9 s)" in shown
    assert "0 written; dollars unknown" in autoopt("show", "acme", "routing", three[2])
    before, after = autoopt("diff", "acme", "routing").splitlines()[1:3]
    assert before.startswith(f"{three[2]}: ")
    assert "a decision costs" not in before
    assert after.startswith(f"{four}: ")
    assert after.endswith("a decision costs 312 tokens, about $0.00012, and takes 0.4 s (p95 0.9 s)")
    compared = json.loads(autoopt("diff", "acme", "routing", "--json"))
    assert (compared["from"]["cost"], compared["to"]["cost"]) == (None, FAST.model_dump())


def test_of_a_withdrawn_version_the_manifest_is_shown(artifacts: VersionStore, three: list[str]) -> None:
    artifacts.withdraw(three[1], actor="marta", reason="a trace was forgotten")
    shown = autoopt("show", "acme", "routing", three[1])
    assert "by marta: a trace was forgotten; its program is gone" in shown
    assert "reason 2" in shown
    assert "find thing" not in shown


def test_a_difference_names_demos_and_instructions(artifacts: VersionStore, three: list[str]) -> None:
    said = autoopt("diff", "acme", "routing")
    assert f"{three[1]} -> {three[2]}" in said
    for line in ("+ find thing 3", "- find thing 1", "-Think 2 times.", "+Think 3 times."):
        assert line in said
    assert "find thing 2" not in said
    assert f"{three[0]} -> {three[2]}" in autoopt("diff", "acme", "routing", three[0])
    assert "+ find thing 0" in autoopt("diff", "acme", "routing", "baseline", three[0])
    assert "the same" in autoopt("diff", "acme", "routing", three[0], three[0])


def test_a_version_that_was_replaced_is_what_the_active_one_is_compared_with_after_a_rollback(
    artifacts: VersionStore, three: list[str]
) -> None:
    autoopt("rollback", "acme", "routing")
    assert f"{three[0]} -> {three[1]}" in autoopt("diff", "acme", "routing")


def test_a_damaged_manifest_is_named_and_the_others_are_listed(
    artifacts: VersionStore, home: Path, three: list[str]
) -> None:
    (manifest,) = home.rglob(f"{three[1]}/manifest.json")
    manifest.write_text('{"version": ')
    said = autoopt("versions", "acme", "routing")
    assert three[0] in said
    assert three[2] in said
    assert re.search(rf"{three[1]}.*damaged", said)
    assert list(json.loads(autoopt("versions", "acme", "routing", "--json"))["damaged"]) == [three[1]]
    assert f"{three[1]}/manifest.json" in autoopt("show", "acme", "routing", three[1], status=2)
    autoopt("rollback", "acme", "routing", "--to", three[0])
    assert active(artifacts) == three[0]


def test_an_active_version_that_somebody_deleted_is_told_as_missing(
    artifacts: VersionStore, home: Path, three: list[str]
) -> None:
    (folder,) = (path for path in home.rglob(three[2]) if path.is_dir())
    shutil.rmtree(folder)
    said = autoopt("versions", "acme", "routing")
    assert re.search(rf"{three[2]} *active *damaged", said)
    assert f"version {three[2]} should serve and is missing" in said
    assert "is missing" in autoopt("show", "acme", "routing", three[2], status=2)
    autoopt("rollback", "acme", "routing")
    assert active(artifacts) == three[1]
    assert three[2] not in autoopt("versions", "acme", "routing")


def test_a_manifest_of_another_version_is_damage(artifacts: VersionStore, home: Path, three: list[str]) -> None:
    one, two = (next(home.rglob(f"{version}/manifest.json")) for version in three[:2])
    one.write_bytes(two.read_bytes())
    assert f"it is the manifest of {three[1]}" in autoopt("versions", "acme", "routing")
    assert "it is the manifest of" in autoopt("promote", "acme", "routing", three[0], status=2)


@pytest.mark.parametrize("command", ["versions", "history", "show", "diff", "rollback", "promote"])
def test_wrong_names_are_one_line_with_the_nearest(home: Path, command: str, three: list[str]) -> None:
    more = [three[0]] if command == "promote" else []
    for tenant, module, words in (("acm", "routing", "'acme'"), ("acme", "ruting", "'routing'")):
        error = autoopt(command, tenant, module, *more, status=2)
        assert f"did you mean {words}?" in error
        assert error.count("\n") == 1
    versions = {"show": [three[0][:-1]], "diff": [three[0][:-1]], "rollback": ["--to", three[0][:-1]]}
    if command in {*versions, "promote"}:
        error = autoopt(command, "acme", "routing", *versions.get(command, [three[0][:-1]]), status=2)
        assert f"did you mean '{three[0]}'?" in error


_TOGETHER = """
import sys, time
from pathlib import Path
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.cli import main

ready, go = Path(sys.argv.pop(1)), Path(sys.argv.pop(1))
transition = VersionStore.transition

def together(self, *args, **kwargs):
    ready.touch()
    while not go.exists():
        time.sleep(0.0005)
    return transition(self, *args, **kwargs)

VersionStore.transition = together
main.run()
"""


def test_of_a_promotion_and_a_rollback_in_two_processes_at_once_none_is_lost_silently(
    artifacts: VersionStore, home: Path, three: list[str]
) -> None:
    """Both have seen the same active version before either of them transitions, in every round."""
    other = make(artifacts, 4, active=False)
    won = []
    for number in range(4):
        before = artifacts.transitions()
        commands = [["promote", "acme", "routing", other], ["rollback", "acme", "routing", "--to", three[0]]]
        go = home / f"go{number}"
        ready = [home / f"ready{number}-{each}" for each in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _TOGETHER, str(flag), str(go), *command],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for flag, command in zip(ready, commands, strict=True)
        ]
        deadline = time.monotonic() + 60
        while not all(flag.exists() for flag in ready) and time.monotonic() < deadline:
            time.sleep(0.01)
        go.touch()
        told = [process.communicate(timeout=60) for process in processes]
        assert sorted(process.returncode for process in processes) == [0, 2], told
        winner = [process.returncode for process in processes].index(0)
        won.append(winner)
        (loser,) = [err for _, err in told if err]
        assert f"the active version is no longer {three[2]}" in loser
        after = artifacts.transitions()
        assert after[:-1] == before
        assert (after[-1].from_version, after[-1].to_version) == (three[2], [other, three[0]][winner])
        assert all(old.to_version == new.from_version for old, new in pairwise(after))
        assert active(artifacts) == after[-1].to_version
        artifacts.transition(three[2], expected=after[-1].to_version, actor="t", reason="once more")


def test_removed_tenants_are_exported_and_deleted(artifacts: VersionStore, home: Path, three: list[str]) -> None:
    kept = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), "acme:eu", "routing")
    store(kept, made_program("acme:eu"), active=True)
    assert "still has a configuration" in autoopt("artifacts", "delete", "acme", status=2)
    autoopt("tenants", "remove", "acme", "--yes")
    said = autoopt("artifacts", "export", "acme", "acme.zip")
    assert "acme: 11 files exported to acme.zip" in said
    assert "exists already" in autoopt("artifacts", "export", "acme", "acme.zip", status=2)
    said = autoopt("artifacts", "delete", "acme", "--yes")
    assert "acme: 11 files deleted" in said
    assert f"routing versions/{three[0]}: 2" in said
    assert "routing transitions: 3" in said
    assert artifacts.versions() == []
    assert "nothing is left to delete" in autoopt("artifacts", "delete", "acme", "--yes")
    assert active(kept) is not None


def test_nothing_is_deleted_while_a_run_is_under_way(artifacts: VersionStore, home: Path, three: list[str]) -> None:
    autoopt("tenants", "remove", "acme", "--yes")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        run = create_run_for_test(
            instance,
            tags={"dagster/partition": "acme"},
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset({dg.AssetKey("routing")}),
        )
    assert f"run {run.run_id} of acme is under way" in autoopt("artifacts", "delete", "acme", status=2)
    assert len(artifacts.versions()) == 3


def test_where_the_system_has_no_name_for_the_user_the_number_is_recorded(
    artifacts: VersionStore, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    autoopt("rollback", "acme", "routing")
    assert artifacts.transitions()[-1].actor == "uid 54321"


def test_a_tenant_that_is_configured_is_deleted_only_for_who_insists(artifacts: VersionStore, three: list[str]) -> None:
    told = json.loads(autoopt("artifacts", "delete", "acme", "--force", "--yes", "--json"))
    assert told["tenant"] == "acme"
    assert len(told["deleted"]) == 11
    assert artifacts.transitions() == []
    assert "acme" in autoopt("tenants", "list")


@pytest.mark.parametrize("command", [["delete", "acm"], ["export", "acm", "out"]])
def test_a_tenant_that_never_was_is_told_with_the_nearest(
    artifacts: VersionStore, home: Path, command: list[str]
) -> None:
    assert "did you mean 'acme'?" in autoopt("artifacts", *command, status=2)
    assert not (home / "out").exists()


def test_the_json_of_every_command_has_the_fields_that_are_documented(
    artifacts: VersionStore, three: list[str]
) -> None:
    documented = {
        command: set(re.findall(r"`(\w+)`", fields))
        for command, fields in re.findall(
            r"^\| `(\w+)` \| (.*) \|$", (PROJECT / "docs" / "versions.md").read_text(), re.MULTILINE
        )
    }
    given = {
        "show": autoopt("show", "acme", "routing", "--json"),
        "diff": autoopt("diff", "acme", "routing", "--json"),
        "rollback": autoopt("rollback", "acme", "routing", "--json"),
        "promote": autoopt("promote", "acme", "routing", three[2], "--json"),
        "versions": autoopt("versions", "acme", "routing", "--json"),
        "history": autoopt("history", "acme", "routing", "--json"),
    }
    assert {command: set(json.loads(told)) for command, told in given.items()} == {
        command: documented[command] for command in given
    }
    assert json.loads(given["diff"])["changes"][0]["added"] == ["find thing 3 -> None"]
    (note,) = json.loads(given["promote"])["notes"]
    assert "it was rolled back" in note
    assert json.loads(given["versions"])["active"] == three[2]
    assert json.loads(given["history"])["transitions"][-1]["to_version"] == three[2]
