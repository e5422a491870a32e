"""Serving from the local folder: what is answered, what follows, and what goes on when things break."""

import asyncio
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import InvalidRequest, InvalidTenantId, UnknownModule
from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.builtin.programs import Decider
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import Pointer
from autoopt_pipeline.serving import Serving
from autoopt_pipeline.serving import _programs as programs
from autoopt_pipeline.serving._snapshot import drawn_canary
from autoopt_pipeline.tenant_id import safe_name
from tests.support.project import PROJECT
from tests.support.stored_programs import artifacts, made_program, store

AGENTS = ["search_agent", "report_agent"]
QUERY = "where is the report?"


@pytest.fixture
def lm() -> dspy.LM:
    return dspy.LM("stand-in/nearest-demo", engine=StandInEngine(), cache=False)


@pytest.fixture
def serving(tmp_path: Path, lm: dspy.LM) -> Serving:
    """Follows only when it is told to."""
    return Serving(str(tmp_path), lm=lm, refresh_seconds=3600)


def promote(root: Path, number: int, *, tenant: str = "acme", module: str = "routing", text: str = "") -> str:
    made = made_program(tenant, module, demos=[f"{text or 'query'} {number}"])
    return store(artifacts(root, tenant, module), made, number, active=True)


def set_canary(root: Path, version: str, canary: dict[str, float], *, sequence: int = 1) -> None:
    pointer = Pointer(version=version, sequence=sequence, canary=canary)
    path = f"{safe_name('acme')}/routing/active.json"
    ObjectStore(str(root)).replace(path, pointer.model_dump_json().encode())


def decided(serving: Serving, request_id: str | None = None) -> str | None:
    return serving.decide("acme", "routing", agents=AGENTS, query=QUERY, request_id=request_id).version


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class TestWhatIsAnswered:
    def test_the_baseline_serves_where_nothing_was_promoted(self, serving: Serving, tmp_path: Path) -> None:
        (tmp_path / "another-tenant").mkdir()
        decision = serving.decide("acme", "routing", agents=AGENTS, query=QUERY)
        assert (decision.version, decision.arm) == (None, "baseline")
        assert decision.values["agent"] in AGENTS
        assert 0 <= (decision.confidence or 0) <= 1
        assert serving.problems() == []

    def test_the_promoted_program_serves(self, serving: Serving, tmp_path: Path) -> None:
        version = promote(tmp_path, 1)
        decision = serving.decide("acme", "routing", agents=AGENTS, query=QUERY)
        assert (decision.version, decision.arm) == (version, "active")

    def test_an_agent_that_is_gone_is_never_answered(self, tmp_path: Path, lm: dspy.LM) -> None:
        labels = [Label(name) for name in ("search_agent", "report_agent", "gone_agent")]
        made = made_program("acme", demos=["about gone things"], labels=labels)
        for demo in made.state["decide"]["demos"]:
            demo["agent"] = "gone_agent"
        store(artifacts(tmp_path), made, active=True)
        serving = Serving(str(tmp_path), lm=lm)
        everyone = serving.decide("acme", "routing", agents=labels, query="about gone things")
        assert everyone.values["agent"] == "gone_agent"
        today = serving.decide("acme", "routing", agents=AGENTS, query="about gone things")
        assert today.values["agent"] in AGENTS
        assert today.version == everyone.version

    def test_plans_name_agents_of_today_only_and_the_program_reads_which_there_are(
        self, tmp_path: Path, lm: dspy.LM
    ) -> None:
        serving = Serving(str(tmp_path), lm=lm)
        loaded = serving.program("acme", "workflow", agents=["only_agent"])
        assert loaded.program.defaults == {"available_agents": "only_agent"}
        assert serving.decide("acme", "workflow", agents=["only_agent"], query="x").values["agents"] == ["only_agent"]

    def test_agents_may_have_descriptions_which_the_model_reads(self, serving: Serving) -> None:
        agents = [("search_agent", "finds things"), ("report_agent", "writes reports")]
        loaded = serving.program("acme", "routing", agents=agents)
        assert "finds things" in loaded.program.decide.signature.fields["agent"].json_schema_extra["desc"]

    def test_a_composed_module_without_a_version_is_made_of_its_parts_active_ones(
        self, serving: Serving, tmp_path: Path
    ) -> None:
        routing = promote(tmp_path, 1)
        loaded = serving.program("acme", "unified", agents=AGENTS)
        assert (loaded.version, loaded.parts) == (None, {"routing": routing})
        newer = promote(tmp_path, 2)
        serving.refresh()
        assert serving.program("acme", "unified", agents=AGENTS).parts == {"routing": newer}
        own = promote(tmp_path, 3, module="unified")
        serving.refresh()
        assert serving.program("acme", "unified", agents=AGENTS).version == own

    def test_a_fusion_is_asked_with_modalities_as_the_application_knows_them(self, serving: Serving) -> None:
        detected = [{"modality": "image", "confidence": 0.5}, {"modality": "video", "confidence": 0.9}]
        decision = serving.decide("acme", "cross_modal", query=QUERY, modalities=detected)
        assert decision.values["fuse"] in {"fuse", "single"}
        with pytest.raises(InvalidRequest, match="no list of modality and confidence"):
            serving.decide("acme", "cross_modal", query=QUERY, modalities=["video"])

    def test_what_is_asked_wrongly_is_told_with_a_remedy(self, serving: Serving) -> None:
        with pytest.raises(InvalidRequest, match=r"agents=\[\.\.\.\]"):
            serving.decide("acme", "routing", query=QUERY)
        for module in ("routing", "modality"):
            with pytest.raises(
                InvalidRequest, match=r"agents is the text 'search' -> pass a list: agents=\['search'\]"
            ):
                serving.decide("acme", module, agents="search", query=QUERY)
        with pytest.raises(InvalidRequest, match="did you mean 'query'"):
            serving.decide("acme", "routing", agents=AGENTS, querry=QUERY)
        with pytest.raises(InvalidRequest, match="needs query"):
            serving.decide("acme", "routing", agents=AGENTS)
        with pytest.raises(UnknownModule, match="did you mean 'routing'"):
            serving.decide("acme", "rooting", agents=AGENTS, query=QUERY)
        with pytest.raises(InvalidTenantId):
            serving.decide("../acme", "routing", agents=AGENTS, query=QUERY)

    def test_the_applications_own_model_and_adapter_are_used(self, tmp_path: Path, lm: dspy.LM) -> None:
        class Counting(dspy.ChatAdapter):
            calls = 0

            def format(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
                Counting.calls += 1
                return super().format(*args, **kwargs)

        serving = Serving(str(tmp_path))
        with dspy.context(lm=lm, adapter=Counting()):
            decided(serving)
        assert Counting.calls == 1
        with dspy.context(lm=lm):
            decided(serving)
        assert Counting.calls == 1
        assert lm.history == []  # else every tenant's requests would stay in memory

    def test_formatted_demos_are_used_again(self, serving: Serving, tmp_path: Path) -> None:
        promote(tmp_path, 1)
        for _ in range(3):
            decided(serving)
        loaded = serving.program("acme", "routing", agents=AGENTS)
        assert isinstance(loaded.adapter, AnswerAdapter)
        assert len(loaded.adapter._formatted) == 1


class TestAsyncio:
    def test_decisions_are_made_side_by_side_with_the_settings_of_their_own_task(
        self, tmp_path: Path, lm: dspy.LM
    ) -> None:
        version = promote(tmp_path, 1)
        serving = Serving(str(tmp_path))
        barrier = threading.Barrier(8, timeout=20)

        class Together(StandInEngine):
            def complete(self, request: Request) -> Response:
                barrier.wait()  # passes only when eight are under way at once
                return super().complete(request)

        async def ask(number: int) -> str | None:
            with dspy.context(lm=dspy.LM(f"stand-in/{number}", engine=Together(), cache=False)):
                decision = await serving.adecide("acme", "routing", agents=AGENTS, query=f"{QUERY} {number}")
            return decision.version

        async def ask_all() -> list[str | None]:
            return await asyncio.gather(*(ask(number) for number in range(8)))

        assert asyncio.run(ask_all()) == [version] * 8

    def test_a_program_with_an_aforward_is_awaited_in_the_applications_own_thread(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Awaited:
            async def complete(self, request: Request) -> Response:
                asked_in.append(threading.current_thread())
                return StandInEngine().complete(request)

        async def aforward(self: Decider, **inputs: str) -> dspy.Prediction:
            return await self.decide.acall(**{**self.defaults, **inputs})

        asked_in: list[threading.Thread] = []
        monkeypatch.setattr(Decider, "aforward", aforward, raising=False)
        lm = dspy.LM("stand-in/x", engine=StandInEngine(), async_engine=Awaited(), cache=False)
        decision = asyncio.run(Serving(str(tmp_path), lm=lm).adecide("acme", "routing", agents=AGENTS, query=QUERY))
        assert decision.values["agent"] in AGENTS
        assert asked_in == [threading.current_thread()]

    def test_the_event_loop_goes_on_while_a_program_is_loaded(
        self, tmp_path: Path, lm: dspy.LM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        promote(tmp_path, 1)
        read_many = ObjectStore.read_many

        def slow(self: ObjectStore, paths: list[str]) -> dict:
            time.sleep(0.5)
            return read_many(self, paths)

        monkeypatch.setattr(ObjectStore, "read_many", slow)
        serving = Serving(str(tmp_path), lm=lm)

        async def watch() -> float:
            asked = asyncio.ensure_future(serving.adecide("acme", "routing", agents=AGENTS, query=QUERY))
            longest, last = 0.0, time.monotonic()
            while not asked.done():
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            await asked
            return longest

        assert asyncio.run(watch()) < 0.4


class TestFollowing:
    def test_a_promotion_serves_within_the_interval_without_a_restart(self, tmp_path: Path, lm: dspy.LM) -> None:
        serving = Serving(str(tmp_path), lm=lm, refresh_seconds=0.2)
        assert decided(serving) is None
        first = promote(tmp_path, 1)
        wait_until(lambda: decided(serving) == first)
        second = promote(tmp_path, 2)
        wait_until(lambda: decided(serving) == second)
        serving.close()

    def test_a_withdrawn_version_leaves_service_with_the_move_to_its_successor(
        self, serving: Serving, tmp_path: Path
    ) -> None:
        first = promote(tmp_path, 1, text="very private")
        assert decided(serving) == first
        second = promote(tmp_path, 2)
        artifacts(tmp_path).withdraw(first, actor="marta", reason="a trace was forgotten")
        serving.refresh()
        loaded = serving.program("acme", "routing", agents=AGENTS)
        assert loaded.version == second
        assert "very private" not in str(loaded.program.dump_state())
        assert serving.problems() == []

    def test_no_request_waits_for_a_refresh(self, tmp_path: Path, lm: dspy.LM, monkeypatch: pytest.MonkeyPatch) -> None:
        first = promote(tmp_path, 1)
        serving = Serving(str(tmp_path), lm=lm, refresh_seconds=0.1)
        assert decided(serving) == first
        hanging, reading = threading.Event(), threading.Event()

        def hang(self: ObjectStore, paths: list[str]) -> dict:
            reading.set()
            hanging.wait()
            return {}

        monkeypatch.setattr(ObjectStore, "read_many", hang)
        assert reading.wait(20)
        began = time.monotonic()
        assert decided(serving) == first
        assert time.monotonic() - began < 1
        serving.close()
        hanging.set()

    def test_only_what_is_in_use_is_followed_and_kept(self, tmp_path: Path, lm: dspy.LM) -> None:
        serving = Serving(str(tmp_path), lm=lm, refresh_seconds=0.05)
        serving.program("acme", "routing", agents=AGENTS)
        wait_until(lambda: serving.status() == [], seconds=0.05 * programs.IDLE_REFRESHES + 20)
        assert decided(serving) is None
        serving.close()

    def test_no_more_programs_than_allowed_are_kept_and_the_longest_unused_goes_first(
        self, tmp_path: Path, lm: dspy.LM
    ) -> None:
        serving = Serving(str(tmp_path), lm=lm, max_loaded=2, refresh_seconds=3600)
        for tenant in ("a", "b", "a", "c"):
            serving.program(tenant, "routing", agents=AGENTS)
        assert [status.tenant_id for status in serving.status()] == ["a", "c"]

    def test_many_sets_of_agents_do_not_fill_the_memory(self, serving: Serving, tmp_path: Path) -> None:
        promote(tmp_path, 1)
        for number in range(30):
            serving.program("acme", "routing", agents=[*AGENTS, f"agent_{number}"])
        (entry,) = serving._programs._entries.values()
        assert entry.snapshot
        assert len(entry.snapshot._built) == 8

    def test_threads_get_one_load_and_whole_answers_while_versions_change(self, tmp_path: Path, lm: dspy.LM) -> None:
        versions: set[str | None] = {promote(tmp_path, 0)}
        serving = Serving(str(tmp_path), lm=lm, refresh_seconds=0.05)
        seen: Counter[str | None] = Counter()
        failures: list[Exception] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    seen[decided(serving)] += 1
                except Exception as e:  # noqa: BLE001 - whatever it is, the test must see it
                    failures.append(e)
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 6):
            time.sleep(0.15)
            versions.add(promote(tmp_path, number))
        last = artifacts(tmp_path).active()
        assert last
        wait_until(lambda: seen[last.version] > 0)
        stop.set()
        for thread in threads:
            thread.join()
        serving.close()
        assert failures == []
        assert set(seen) <= versions

    def test_a_forked_worker_answers_and_follows_by_itself(self, tmp_path: Path) -> None:
        promote(tmp_path, 1)
        code = f"""
import os, sys, threading, time
sys.path.insert(0, {str(PROJECT)!r})
import dspy
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.serving import Serving
from tests.integration.serving.test_serving import AGENTS, QUERY, decided, promote
from pathlib import Path
lm = dspy.LM("stand-in/x", engine=StandInEngine(), cache=False)
serving = Serving({str(tmp_path)!r}, lm=lm, refresh_seconds=0.2)
first = decided(serving)
busy = threading.Thread(target=lambda: [decided(serving) for _ in range(300)])
busy.start()
children = [os.fork() for _ in range(2)]
if 0 in children:
    try:
        assert decided(serving) == first
        deadline = time.monotonic() + 20
        while decided(serving) == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert serving.decide("other", "routing", agents=AGENTS, query=QUERY).version is None
    except BaseException:
        import traceback; traceback.print_exc()
        os._exit(1)
    os._exit(0)
busy.join()
promote(Path({str(tmp_path)!r}), 2)
print([os.waitpid(child, 0)[1] for child in children])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout.strip() == "[0, 0]", done.stderr[-3000:]


class TestWhatIsRefused:
    def refuse(self, serving: Serving, caplog: pytest.LogCaptureFixture, match: str) -> None:
        """Refreshes several times, and expects one problem, told once."""
        caplog.set_level(logging.WARNING, logger="autoopt_pipeline")
        for _ in range(3):
            serving.refresh()
        (problem,) = serving.problems()
        assert problem.where == "acme/routing"
        assert match in problem.what
        assert sum(match in record.getMessage() for record in caplog.records) == 1

    def test_a_damaged_program(self, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = promote(tmp_path, 1)
        assert decided(serving) == first
        second = promote(tmp_path, 2)
        path = tmp_path / "acme" / "routing" / "versions" / second / "program.json"
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        self.refuse(serving, caplog, "is damaged")
        assert decided(serving) == first
        path.write_bytes(whole)
        for entry in serving._programs._entries.values():
            entry.retry = 0  # as if the wait between two tries were over
        serving.refresh()
        assert decided(serving) == second
        assert serving.problems() == []

    def test_another_tenants_program(self, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = promote(tmp_path, 1)
        assert decided(serving) == first
        foreign = promote(tmp_path, 2, tenant="rival")
        own = tmp_path / "acme" / "routing"
        shutil.copytree(tmp_path / "rival" / "routing" / "versions" / foreign, own / "versions" / foreign)
        (own / "active.json").write_text(Pointer(version=foreign, sequence=9).model_dump_json())
        self.refuse(serving, caplog, "belongs to rival/routing")
        assert decided(serving) == first

    def test_a_program_of_another_signature(
        self, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert decided(serving) is None
        made = made_program("acme").model_copy(update={"fingerprint": "of yesterday"})
        store(artifacts(tmp_path), made, active=True)
        self.refuse(serving, caplog, "another signature")
        assert decided(serving) is None

    def test_a_version_that_is_withdrawn_while_it_is_active(
        self, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        artifacts(tmp_path).withdraw(promote(tmp_path, 1), actor="t", reason="wrong")
        assert decided(serving) is None
        self.refuse(serving, caplog, "was withdrawn")

    def test_a_damaged_pointer(self, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        first = promote(tmp_path, 1)
        assert decided(serving) == first
        (tmp_path / "acme" / "routing" / "active.json").write_text('{"version": ')
        self.refuse(serving, caplog, "active.json is damaged")
        assert decided(serving) == first

    def test_a_pointer_that_is_gone_or_older(
        self, serving: Serving, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        promote(tmp_path, 1)
        path = tmp_path / "acme" / "routing" / "active.json"
        before = path.read_bytes()
        second = promote(tmp_path, 2)
        assert decided(serving) == second
        path.write_bytes(before)
        self.refuse(serving, caplog, "is older")
        path.unlink()
        serving.refresh()
        assert "is gone" in serving.problems()[0].what
        assert decided(serving) == second

    def test_a_part_that_is_refused_leaves_the_other_parts_of_a_baseline(
        self, serving: Serving, tmp_path: Path
    ) -> None:
        routing = promote(tmp_path, 1)
        broken = promote(tmp_path, 1, module="workflow")
        (tmp_path / "acme" / "workflow" / "versions" / broken / "program.json").write_text("{}")
        assert serving.program("acme", "unified", agents=AGENTS).parts == {"routing": routing}
        (problem,) = serving.problems()
        assert "acme/workflow" in problem.what


class TestOutages:
    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
        """Turns the store off and on again."""
        read = ObjectStore.read_many

        def turn_off(off: bool) -> None:
            def refuse(self: ObjectStore, paths: list[str]) -> dict:
                raise OSError("connection refused")

            monkeypatch.setattr(ObjectStore, "read_many", refuse if off else read)

        return turn_off

    def test_the_last_good_programs_serve_and_the_outage_is_told_once(
        self, serving: Serving, tmp_path: Path, failing: Callable, caplog: pytest.LogCaptureFixture
    ) -> None:
        for tenant in ("acme", "b", "c"):
            promote(tmp_path, 1, tenant=tenant)
            serving.program(tenant, "routing", agents=AGENTS)
        before = decided(serving)
        failing(True)
        for _ in range(3):
            serving.refresh()
        assert decided(serving) == before
        assert len(serving.problems()) == 3
        assert sum("connection refused" in record.getMessage() for record in caplog.records) == 1
        second = promote(tmp_path, 2)
        failing(False)
        serving.refresh()
        assert serving.problems() == []
        assert decided(serving) == second

    def test_a_tenant_that_was_never_loaded_gets_the_baseline_until_the_store_is_back(
        self, serving: Serving, tmp_path: Path, failing: Callable
    ) -> None:
        version = promote(tmp_path, 1)
        failing(True)
        assert decided(serving) is None
        assert "connection refused" in serving.problems()[0].what
        failing(False)
        serving.refresh()
        assert decided(serving) == version
        assert serving.problems() == []

    def test_a_store_that_hangs_holds_up_one_request_only_and_not_for_long(
        self, tmp_path: Path, lm: dspy.LM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        version = promote(tmp_path, 1)
        back = threading.Event()
        read = ObjectStore.read_many
        monkeypatch.setattr(ObjectStore, "read_many", lambda self, paths: back.wait() and read(self, paths))
        serving = Serving(str(tmp_path), lm=lm, refresh_seconds=3600, load_seconds=0.3)
        began = time.monotonic()
        assert decided(serving) is None
        assert 0.3 < time.monotonic() - began < 10
        began = time.monotonic()
        assert decided(serving) is None
        assert time.monotonic() - began < 0.3
        assert "in time" in serving.problems()[0].what
        back.set()
        wait_until(lambda: decided(serving) == version)
        assert serving.problems() == []

    def test_tries_become_rarer_while_the_store_fails(self, serving: Serving, failing: Callable) -> None:
        decided(serving)
        (entry,) = serving._programs._entries.values()
        failing(True)
        waits = []
        for _ in range(6):
            serving.refresh()
            waits.append((entry.due - time.monotonic()) / 3600)
        for wait, expected in zip(waits, (1, 2, 4, 8, 10, 10), strict=True):
            assert expected * 0.79 < wait < expected * 1.21


class TestCanary:
    def test_a_request_id_always_falls_to_the_same_arm_and_the_decision_says_which(
        self, serving: Serving, tmp_path: Path
    ) -> None:
        test = promote(tmp_path, 1)
        active = promote(tmp_path, 2)
        set_canary(tmp_path, active, {test: 0.3}, sequence=2)
        first = [serving.decide("acme", "routing", agents=AGENTS, query=QUERY, request_id=str(i)) for i in range(40)]
        again = [serving.decide("acme", "routing", agents=AGENTS, query=QUERY, request_id=str(i)) for i in range(40)]
        assert [d.version for d in first] == [d.version for d in again]
        assert {(d.version, d.arm) for d in first} == {(active, "active"), (test, "canary")}
        set_canary(tmp_path, active, {}, sequence=3)
        serving.refresh()
        assert {decided(serving, request_id=str(i)) for i in range(40)} == {active}

    def test_a_refused_canary_does_not_serve_and_the_active_version_does(
        self, serving: Serving, tmp_path: Path
    ) -> None:
        active = promote(tmp_path, 1)
        set_canary(tmp_path, active, {"20260101T000000Z-00000000": 1.0})
        assert decided(serving, request_id="1") == active
        assert "does not exist" in serving.problems()[0].what

    @given(st.dictionaries(st.sampled_from("abc"), st.floats(0, 1), max_size=3), st.text())
    def test_an_arm_is_a_version_of_the_canary_or_none_and_stays_the_same(
        self, canary: dict[str, float], request_id: str
    ) -> None:
        active = Pointer(version="v", sequence=1, canary=canary)
        drawn = drawn_canary("routing", active, request_id)
        assert drawn == drawn_canary("routing", active, request_id)
        assert drawn is None or canary[drawn] > 0
        if sum(canary.values()) == 0:
            assert drawn is None

    @pytest.mark.parametrize("with_id", [True, False])
    def test_the_share_of_requests_is_the_pointers(self, with_id: bool) -> None:
        random.seed(1)
        active = Pointer(version="v", sequence=1, canary={"a": 0.1, "b": 0.3})
        drawn = Counter(drawn_canary("routing", active, f"r{i}" if with_id else None) for i in range(20_000))
        for version, share in (("a", 0.1), ("b", 0.3), (None, 0.6)):
            # Six standard deviations of a binomial share.
            assert abs(drawn[version] / 20_000 - share) < 6 * (share * (1 - share) / 20_000) ** 0.5


class TestImport:
    def test_it_is_light_and_needs_only_what_the_base_install_has(self, tmp_path: Path) -> None:
        version = promote(tmp_path, 1)
        code = f"""
import sys, json
class Blocked:
    names = {{"dagster", "pandas", "phoenix", "redis", "sqlalchemy", "optuna", "typer", "rich", "tenacity", "psutil",
              "kubernetes", "alembic", "litellm", "s3fs", "moto"}}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}} is not in the base install", name=name)
sys.meta_path.insert(0, Blocked())
from autoopt_pipeline.serving import Serving, trace_to_phoenix
light = [name for name in ("dspy", "opentelemetry.sdk", "numpy") if name in sys.modules]
import dspy
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
trace_to_phoenix("http://127.0.0.1:9")
serving = Serving({str(tmp_path)!r}, lm=dspy.LM("stand-in/x", engine=StandInEngine(), cache=False))
decision = serving.decide("acme", "routing", agents={AGENTS!r}, query="x")
serving.feedback(decision, correct=True)
print(json.dumps([light, decision.version, bool(decision.span_id)]))
import os
os._exit(0)
"""
        env = {**os.environ, "PYTHONPATH": str(PROJECT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
        assert done.stdout.strip(), done.stderr[-3000:]
        assert json.loads(done.stdout) == [[], version, True]


def test_a_rollback_to_the_baseline_is_followed_and_is_no_loss_of_the_store(serving: Serving, tmp_path: Path) -> None:
    version = promote(tmp_path, 1)
    assert decided(serving) == version
    artifacts(tmp_path).transition(None, expected=version, actor="marta", reason="it annoys people")
    serving.refresh()
    assert decided(serving) is None
    assert serving.problems() == []
    again = promote(tmp_path, 2)
    serving.refresh()
    assert decided(serving) == again
