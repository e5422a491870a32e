"""Programs without a trace's text."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.erasure.programs import erase_from_programs, versions_with, without_target
from autoopt_pipeline.erasure.service import exclude_traces
from autoopt_pipeline.erasure.target import ErasureTarget
from autoopt_pipeline.errors import ArtifactStoreUnavailable, ConfigConflict, InvalidConfig, PromotionConflict
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.redaction import redact
from autoopt_pipeline.optimization.job import OptimizationJob
from autoopt_pipeline.optimization.pipeline import optimize
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import Agent, LMSettings, RoutingConfigUnified
from autoopt_pipeline.tenants.store import read_config, write_config
from autoopt_pipeline.tenants.stores.sqlite import SqliteConfigStore
from tests.support.sequential_tests import made_step
from tests.support.stored_programs import AT, LABELS, made_program, store

SECRET = "Where is Maria Huber's biopsy report?"
OTHER = "play the recording of the meeting"
BASELINE = "Choose the one agent that should take the query."

queries = st.text(st.sampled_from("abc dé,.?-"), min_size=1, max_size=30).filter(str.strip)


def text(*wanted: str, spans: Sequence[str] = ()) -> ErasureTarget:
    return ErasureTarget(frozenset(spans), frozenset(each for query in wanted for each in (query, redact(query))))


@pytest.fixture
def artifacts(tmp_path: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")


def holds(folder: Path, secret: str = SECRET) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret in path.read_text()]


def active_version(artifacts: VersionStore) -> str | None:
    active = artifacts.active()
    return active.version if active else None


def demos_of(artifacts: VersionStore) -> list[str]:
    program = deserialize(get_module("routing"), LABELS, artifacts.load(active_version(artifacts) or ""))
    return [demo["query"] for predictor in program.predictors() for demo in predictor.demos]


@given(queries, st.lists(queries, max_size=8))
def test_what_is_left_of_a_program_does_not_hold_the_text_and_loses_nothing_else(
    secret: str, others: list[str]
) -> None:
    forgotten = text(secret)
    before = made_program("acme", demos=[*others, secret])
    after = without_target(before, forgotten)
    kept = [demo["query"] for demo in after.state["decide"]["demos"]]
    assert secret not in kept
    assert kept == [query for query in others if not forgotten.is_in(query)]
    assert without_target(after, forgotten) == after


@given(queries)
def test_a_text_is_found_whatever_its_case_and_punctuation(query: str) -> None:
    assert text(query).is_in({"query": f"  {query.upper()} "})
    assert text(query.upper()).is_in([{"query": query}])


def test_a_text_is_found_as_it_was_redacted_when_it_was_learnt() -> None:
    assert text("write to maria@example.org about it").is_in("write to <mail> about it")


def test_longer_texts_are_found_inside_others_and_short_ones_only_as_a_whole() -> None:
    assert text(SECRET).is_in(f"It asks '{SECRET.lower()}' so it is a search")
    assert text("video").is_in({"query": "Video?"})
    assert not text("video").is_in("Send every request for a video to video_agent.")


def test_a_demo_goes_with_the_span_that_it_came_from_and_no_other_does(artifacts: VersionStore) -> None:
    program = made_program("acme", demos=[OTHER, "learnt by other rules of redaction", SECRET, SECRET])
    sources = ["a", "b", "c", None]
    store(artifacts, program.model_copy(update={"demo_sources": {"decide": sources}}), active=True)
    erase_from_programs(artifacts, text(SECRET, spans=["b"]), actor="marta")
    assert demos_of(artifacts) == [OTHER, SECRET]
    assert artifacts.versions()[-1].demo_sources == {"decide": ["a", "c"]}
    erase_from_programs(artifacts, text(SECRET, spans=["x"]), actor="marta")
    assert demos_of(artifacts) == [OTHER, SECRET]
    erase_from_programs(artifacts, replace(text(SECRET), spans_known=False), actor="marta")
    assert demos_of(artifacts) == [OTHER]


def test_a_version_that_is_withdrawn_too_does_not_take_its_place(artifacts: VersionStore) -> None:
    alike = made_program("acme", demos=[OTHER])
    earlier = store(artifacts, alike.model_copy(update={"demo_sources": {"decide": ["b"]}}), 0)
    active = made_program("acme", demos=[OTHER, SECRET]).model_copy(update={"demo_sources": {"decide": ["a", "b"]}})
    store(artifacts, active, 1, active=True)
    erased = erase_from_programs(artifacts, text(SECRET, spans=["b"]), actor="marta")
    assert earlier in erased.withdrawn
    assert demos_of(artifacts) == [OTHER]
    assert artifacts.versions()[-1].demo_sources == {"decide": ["a"]}


def test_the_active_version_is_replaced_by_its_equal_without_the_text_at_once(
    artifacts: VersionStore, tmp_path: Path
) -> None:
    clean = store(artifacts, made_program("acme", demos=[OTHER]), 0)
    held = store(artifacts, made_program("acme", demos=[SECRET]), 1)
    active = store(artifacts, made_program("acme", demos=[OTHER, SECRET.upper(), "third"]), 2, active=True)
    cleaned = erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert cleaned.withdrawn == (held, active)
    assert (cleaned.before, cleaned.now) == (active, active_version(artifacts))
    assert demos_of(artifacts) == [OTHER, "third"]
    assert holds(tmp_path) == holds(tmp_path, SECRET.upper()) == []
    transition = artifacts.transitions()[-1]
    assert (transition.actor, transition.from_version) == ("forget", active)
    manifest = artifacts.versions()[-1]
    assert (manifest.version, manifest.parent, manifest.verdict) == (cleaned.now, active, "forget")
    assert "by marta" in manifest.reason
    assert manifest.gate == {}
    assert [each.version for each in artifacts.versions()] == [clean, held, active, cleaned.now]
    artifacts.load(clean)


def test_where_the_active_version_does_not_hold_the_text_it_stays(artifacts: VersionStore) -> None:
    store(artifacts, made_program("acme", demos=[SECRET]), 0)
    active = store(artifacts, made_program("acme", demos=[OTHER]), 1, active=True)
    cleaned = erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert cleaned.now is None
    assert active_version(artifacts) == active
    assert len(artifacts.transitions()) == 1


def test_instructions_that_quote_the_text_become_the_baselines(artifacts: VersionStore, tmp_path: Path) -> None:
    quoting = made_program("acme", demos=[OTHER], instructions={"decide": f"As in '{SECRET}', search first."})
    store(artifacts, quoting, active=True)
    erase_from_programs(artifacts, text(SECRET), actor="marta")
    program = deserialize(get_module("routing"), LABELS, artifacts.load(active_version(artifacts) or ""))
    assert program.decide.signature.instructions == BASELINE
    assert demos_of(artifacts) == [OTHER]
    assert holds(tmp_path) == []


def test_a_text_that_stands_in_the_baseline_itself_withdraws_nothing_for_that(artifacts: VersionStore) -> None:
    active = store(artifacts, made_program("acme", demos=[OTHER]), active=True)
    assert erase_from_programs(artifacts, text("take the query"), actor="marta").withdrawn == ()
    assert active_version(artifacts) == active


def test_a_composed_program_is_cleaned_in_all_its_parts(tmp_path: Path) -> None:
    artifacts = VersionStore(ObjectStore(str(tmp_path)), "acme", "unified")
    store(artifacts, made_program("acme", "unified", demos=[SECRET, OTHER]), active=True)
    erase_from_programs(artifacts, text(SECRET), actor="marta")
    state = artifacts.load(active_version(artifacts) or "").state
    assert {name: len(predictor["demos"]) for name, predictor in state.items()} == {
        "modality.decide": 1,
        "routing.decide": 1,
        "workflow.decide": 1,
    }
    assert holds(tmp_path) == []


def test_damaged_and_half_written_programs_are_found_too(artifacts: VersionStore, tmp_path: Path) -> None:
    version = store(artifacts, made_program("acme", demos=[SECRET]), 0, active=True)
    versions = tmp_path / "acme" / "routing" / "versions"
    damaged = (versions / version / "program.json").read_text().replace('"format": 1', '"format": 1,,')
    (versions / version / "program.json").write_text(damaged)
    for name in ("program.json", ".writing-x"):
        (versions / f"half-{name.strip('.')}").mkdir()
        (versions / f"half-{name.strip('.')}" / name).write_text(damaged[: len(damaged) // 2])
    assert len(holds(tmp_path)) == 3
    assert len(erase_from_programs(artifacts, text(SECRET), actor="marta").withdrawn) == 3
    assert holds(tmp_path) == []


@pytest.mark.parametrize("writes", range(8))
def test_whenever_it_dies_a_second_call_finishes(
    tmp_path: Path, artifacts: VersionStore, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    older = store(artifacts, made_program("acme", demos=[SECRET]), 0)
    active = store(artifacts, made_program("acme", demos=[OTHER, SECRET]), 1, active=True)
    left = [writes]

    def dying(method):
        def call(self: ObjectStore, *args):
            if left[0] == 0:
                raise ArtifactStoreUnavailable("dead", "start again")
            left[0] -= 1
            return method(self, *args)

        return call

    with monkeypatch.context() as patch:
        for name in ("create", "replace", "delete"):
            patch.setattr(ObjectStore, name, dying(getattr(ObjectStore, name)))
        with pytest.raises(ArtifactStoreUnavailable):
            erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert demos_of(artifacts)[0] == OTHER  # something serves at every moment
    erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert holds(tmp_path) == []
    assert demos_of(artifacts) == [OTHER]
    assert [manifest.parent for manifest in artifacts.versions() if manifest.verdict == "forget"] == [active]
    assert all(artifacts.withdrawal(version) for version in (older, active))
    assert erase_from_programs(artifacts, text(SECRET), actor="marta").withdrawn == ()


def test_a_promotion_in_between_is_cleaned_as_well(
    artifacts: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(artifacts, made_program("acme", demos=[SECRET]), 0, active=True)
    transition, moved = VersionStore.transition, []

    def promoted_first(self: VersionStore, to: str, **kwargs):
        if not moved:
            moved.append(to)
            newer = store(self, made_program("acme", demos=[OTHER, SECRET]), 1)
            transition(self, newer, expected=kwargs["expected"], actor="run", reason="")
        return transition(self, to, **kwargs)

    monkeypatch.setattr(VersionStore, "transition", promoted_first)
    erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert demos_of(artifacts) == [OTHER]
    assert holds(tmp_path) == []


def test_a_withdrawn_equal_of_what_is_left_does_not_come_back(artifacts: VersionStore) -> None:
    withdrawn = store(artifacts, made_program("acme", demos=[OTHER]), 0)
    artifacts.withdraw(withdrawn, actor="marta", reason="")
    store(artifacts, made_program("acme", demos=[OTHER, SECRET]), 1, active=True)
    erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert active_version(artifacts) != withdrawn
    assert demos_of(artifacts) == [OTHER]


def test_an_active_version_that_keeps_changing_is_an_error(
    artifacts: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store(artifacts, made_program("acme", demos=[SECRET]), 0, active=True)

    def stale(self: VersionStore, to: str, **kwargs):
        raise PromotionConflict("somebody else", "repeat")

    monkeypatch.setattr(VersionStore, "transition", stale)
    with pytest.raises(PromotionConflict, match="repeat the command"):
        erase_from_programs(artifacts, text(SECRET), actor="marta")
    assert versions_with(artifacts, text(SECRET)) == [version]


def test_the_trial_of_a_withdrawn_candidate_ends_by_itself(artifacts: VersionStore) -> None:
    waiting = store(artifacts, made_program("acme", demos=[SECRET]))
    step = made_step(waiting, labels=[label.name for label in LABELS], at=AT)
    artifacts.add_sequential_test_step(step)
    erase_from_programs(artifacts, text(SECRET), actor="marta")
    config = RoutingConfigUnified(tenant_id="acme", agents=[Agent(name=label.name) for label in LABELS])
    lm = metered_lm(LMSettings(model="stand-in"), Meter(10, 10**6))
    report = optimize(OptimizationJob(get_module("routing"), config, [], AT, AT, "run"), lm, artifacts)
    assert report.verdict is Verdict.NOT_ENOUGH_DATA
    assert any(f"the sequential test of {waiting} ends" in note and "withdrawn" in note for note in report.notes)


@pytest.fixture
def configs(tmp_path: Path) -> SqliteConfigStore:
    configs = SqliteConfigStore(str(tmp_path / "config.db"))
    write_config(configs, RoutingConfigUnified(tenant_id="acme"))
    return configs


def test_the_configuration_lists_the_traces_and_marks_the_modules_that_the_tenant_has(
    configs: SqliteConfigStore,
) -> None:
    assert exclude_traces(configs, "acme", ["a" * 32], ["routing", "unified"], now=AT) == 2
    config, _ = read_config(configs, "acme")
    assert config.excluded_traces == ["a" * 32]
    assert config.retrain_after("routing") == AT
    assert config.retrain_after("modality") is None
    assert "unified" not in config.modules


def test_saying_it_again_writes_nothing(configs: SqliteConfigStore) -> None:
    exclude_traces(configs, "acme", ["a" * 32], ["routing"], now=AT)
    assert exclude_traces(configs, "acme", ["a" * 32], [], now=AT) is None
    assert len(configs.history("acme")) == 2


def test_another_writer_in_between_is_not_overwritten(
    configs: SqliteConfigStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, others = SqliteConfigStore.write, iter([True])

    def other_first(self: SqliteConfigStore, tenant_id: str, document: object, **kwargs) -> int:
        if next(others, False):
            config, _ = read_config(self, tenant_id)
            changed = config.model_copy(update={"min_samples_for_optimization": 7})
            write(self, tenant_id, changed.model_dump(mode="json"))
        return write(self, tenant_id, document, **kwargs)

    monkeypatch.setattr(SqliteConfigStore, "write", other_first)
    exclude_traces(configs, "acme", ["a" * 32], [], now=AT)
    config, version = read_config(configs, "acme")
    assert (config.excluded_traces, config.min_samples_for_optimization, version) == (["a" * 32], 7, 3)

    def never(self: SqliteConfigStore, *args, **kwargs) -> int:
        raise ConfigConflict("newer", "again")

    monkeypatch.setattr(SqliteConfigStore, "write", never)
    with pytest.raises(ConfigConflict, match="keeps changing"):
        exclude_traces(configs, "acme", ["b" * 32], [], now=AT)


def test_a_full_list_is_an_error_that_names_it(configs: SqliteConfigStore) -> None:
    exclude_traces(configs, "acme", [f"{number:032x}" for number in range(1000)], [], now=AT)
    with pytest.raises(InvalidConfig, match="excluded_traces"):
        exclude_traces(configs, "acme", ["a" * 32], [], now=AT)


def test_without_the_target_it_is_still_a_program_that_loads(artifacts: VersionStore) -> None:
    program = without_target(made_program("acme", demos=[SECRET, OTHER]), text(SECRET))
    assert SECRET not in json.dumps(program.model_dump())
    deserialize(get_module("routing"), LABELS, program)
