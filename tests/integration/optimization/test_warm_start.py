"""Sharing instructions between tenants that both said so."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidArtifact
from autoopt_pipeline.evaluation.sequential_test_log import SequentialTestConditions, open_test
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.optimization.pipeline import OptimizationJob, optimize
from autoopt_pipeline.optimization.warm_start import (
    MAX_INSTRUCTIONS_CHARS,
    Pool,
    choose,
    gives_away,
    share_instructions,
    shareable,
)
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import deserialize, serialize
from autoopt_pipeline.registry.shared_instructions import SHARED_PRIOR, SharedInstructions, SharedStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.stores.sqlite import SqliteConfigStore
from tests.support.instruction_sharing import (
    BETTER,
    LABELS,
    ROUTING,
    artifacts_of,
    configure,
    program_with,
    promotion,
    publish,
    started,
)
from tests.support.optimizing import decisions, stand_in
from tests.support.stored_programs import AT, manifest_of, shared_of, store

BASELINE = ROUTING.build_program(LABELS).decide.signature.instructions

words = st.lists(st.sampled_from(["find", "the", "old", "Poster", "über", "42", "now"]), max_size=12)


def serving(root: Path, tenant: str) -> dspy.Module | None:
    artifacts = artifacts_of(root, tenant)
    active = artifacts.active()
    return deserialize(ROUTING, LABELS, artifacts.load(active.version)) if active else None


def test_a_tenant_with_too_little_data_starts_from_what_others_share(
    pool: Pool, configs: SqliteConfigStore, root: Path
) -> None:
    publish(pool, configs, "donor:eu")
    report = started(pool, root, configure(configs, "taker", start_from_shared=True))
    assert report.verdict is Verdict.NOT_ENOUGH_DATA
    assert "training" in report.reason  # how much is missing
    assert "unproven here: started from the instructions that 1 tenant shares" in report.reason
    program = serving(root, "taker")
    assert program is not None
    assert program.decide.signature.instructions == BETTER
    assert program.decide.demos == []
    (manifest,) = artifacts_of(root, "taker").versions()
    assert manifest.version == report.version == report.active_version
    assert (manifest.optimizer, manifest.verdict) == (SHARED_PRIOR, "not_enough_data")
    assert manifest.candidate_score is None
    (transition,) = artifacts_of(root, "taker").transitions()
    assert "unproven here" in transition.reason


def test_nothing_of_the_donor_but_its_instructions_reaches_the_taker(
    pool: Pool, configs: SqliteConfigStore, root: Path
) -> None:
    publish(pool, configs, "donor:eu")
    started(pool, root, configure(configs, "taker", start_from_shared=True))
    files = [path for path in (root / "taker").rglob("*") if path.is_file()]
    stored = "".join(path.read_text() for path in files)
    assert BETTER in stored
    assert "donor" not in stored
    assert "demo of" not in "".join(path.read_text() for path in root.rglob("*.json"))


def test_the_gate_judges_the_next_candidate_against_what_was_started_from(
    pool: Pool, configs: SqliteConfigStore, root: Path
) -> None:
    publish(pool, configs, "donor")
    config = configure(configs, "taker", start_from_shared=True)
    first = started(pool, root, config)
    artifacts = artifacts_of(root, "taker")
    job = OptimizationJob(
        ROUTING, config, decisions(450), AT - timedelta(days=1), AT + timedelta(days=1), "next", pool=pool
    )
    report = optimize(job, stand_in(), artifacts)
    assert report.verdict is Verdict.PROMOTED
    assert report.gate is not None
    assert report.incumbent_version == first.version
    assert artifacts.ledger()[-1].incumbent == first.version
    assert artifacts.versions()[-1].parent == first.version


@pytest.mark.parametrize(("shares", "starts"), [(False, True), (True, False), (False, False)])
def test_both_sides_must_have_said_so(
    pool: Pool, configs: SqliteConfigStore, root: Path, shares: bool, starts: bool
) -> None:
    publish(pool, configs, "donor", share_instructions=shares)
    report = started(pool, root, configure(configs, "taker", start_from_shared=starts))
    assert report.verdict is Verdict.NOT_ENOUGH_DATA
    assert "share" not in report.reason
    assert serving(root, "taker") is None
    assert artifacts_of(root, "taker").versions() == []


@pytest.mark.parametrize("how", ["says no", "is removed", "cannot be read"])
def test_a_donor_that_consents_no_longer_is_not_read(
    pool: Pool, configs: SqliteConfigStore, root: Path, how: str
) -> None:
    publish(pool, configs, "donor")
    document = {
        "says no": {"tenant_id": "donor"},
        "is removed": None,
        "cannot be read": {"tenant_id": "donor", "share_instructions": True, "lookback_seconds": -1},
    }[how]
    configs.write("donor", document)
    started(pool, root, configure(configs, "taker", start_from_shared=True))
    assert serving(root, "taker") is None


def test_nobody_starts_from_itself(pool: Pool, configs: SqliteConfigStore, root: Path) -> None:
    publish(pool, configs, "same")
    started(pool, root, configure(configs, "same", share_instructions=True, start_from_shared=True))
    assert serving(root, "same") is None


def test_where_a_version_is_active_it_stays(pool: Pool, configs: SqliteConfigStore, root: Path) -> None:
    publish(pool, configs, "donor")
    config = configure(configs, "taker", start_from_shared=True)
    own = store(artifacts_of(root, "taker"), serialize(ROUTING, "taker", LABELS, program_with("Own.")), active=True)
    assert started(pool, root, config).active_version == own
    assert [manifest.version for manifest in artifacts_of(root, "taker").versions()] == [own]


@pytest.mark.parametrize("learnt", [False, True], ids=["nothing learnt", "a part learnt"])
def test_a_composed_module_starts_from_what_others_share_unless_its_parts_have_learnt(
    configs: SqliteConfigStore, root: Path, learnt: bool
) -> None:
    unified = get_module("unified")
    config = configure(configs, "taker", start_from_shared=True)
    configure(configs, "donor", share_instructions=True)
    program = unified.build_program(LABELS)
    program.routing.decide.signature = program.routing.decide.signature.with_instructions(BETTER)
    pool = Pool(SharedStore(ObjectStore(str(root)), "unified"), configs)
    report = replace(promotion("donor"), module="unified")
    manifest = manifest_of(serialize(unified, "donor", LABELS, program), "v")
    shared = manifest.model_copy(update={"shareable": ["routing.decide"]})
    share_instructions(pool, unified, LABELS, report, shared, program)
    parts = {"routing": serialize(ROUTING, "taker", LABELS, program_with("Own."))} if learnt else {}
    artifacts = VersionStore(ObjectStore(str(root)), "taker", "unified")
    optimize(OptimizationJob(unified, config, [], AT, AT, "run", parts=parts, pool=pool), stand_in(), artifacts)
    assert (artifacts.active() is None) == learnt


def test_with_manual_promotion_it_waits_for_approval_as_one_version(
    pool: Pool, configs: SqliteConfigStore, root: Path
) -> None:
    publish(pool, configs, "donor")
    config = configure(configs, "taker", start_from_shared=True, promotion_mode="manual")
    report = started(pool, root, config)
    assert "waits for approval" in report.reason
    assert report.active_version is None
    assert started(pool, root, config).version == report.version
    assert len(artifacts_of(root, "taker").versions()) == 1


def test_another_donors_damaged_publication_does_no_harm(pool: Pool, configs: SqliteConfigStore, root: Path) -> None:
    publish(pool, configs, "donor")
    publish(pool, configs, "broken", gain=0.9)
    (root / "_shared" / "routing" / "broken.json").write_text("{}")
    with pytest.raises(InvalidArtifact, match="damaged"):
        pool.store.read("broken")
    started(pool, root, configure(configs, "taker", start_from_shared=True))
    assert serving(root, "taker") is not None


def test_instructions_of_a_promotion_are_published_when_the_tenant_shares(
    pool: Pool, configs: SqliteConfigStore, root: Path
) -> None:
    """Along the real way to a promotion: a candidate with instructions of its own wins its sequential test."""
    config = configure(configs, "donor", share_instructions=True)
    artifacts = artifacts_of(root, "donor")
    labels = labels_of(ROUTING, config)
    spare = VersionStore(ObjectStore(str(root / "spare")), "donor", "routing")
    learnt = optimize(
        OptimizationJob(ROUTING, config, decisions(450), AT, AT + timedelta(days=1), "r"), stand_in(), spare
    )
    program = deserialize(ROUTING, labels, spare.load(learnt.version or ""))
    program.decide.signature = program.decide.signature.with_instructions(BETTER)
    stored = serialize(ROUTING, "donor", labels, program)
    waiting = "20260101T000000Z-waiting"
    artifacts.save(stored, manifest_of(stored, waiting).model_copy(update={"shareable": ["decide"]}))
    conditions = SequentialTestConditions(None, "stand-in", tuple(label.name for label in labels))
    open_test(artifacts, waiting, conditions, after=0, alpha=0.05, queries=[], run_id="r")
    job = OptimizationJob(ROUTING, config, decisions(450, seed=9), AT, AT + timedelta(days=1), "run", pool=pool)
    report = optimize(job, stand_in(), artifacts)
    assert report.verdict is Verdict.PROMOTED
    shared = pool.store.read("donor")
    assert shared is not None
    assert report.gate is not None
    assert (shared.version, shared.instructions) == (waiting, {"decide": BETTER})
    assert (shared.gain, shared.cases) == (report.gate.comparison.gain, report.gate.comparison.cases)
    assert any("other tenants may start" in note for note in report.notes)


def test_what_gives_away_a_query_or_the_tenant_is_not_published_and_replaces_what_was(
    pool: Pool, configs: SqliteConfigStore
) -> None:
    publish(pool, configs, "donor")
    assert pool.store.read("donor") is not None
    quoted = "Such as: where did we put the OLD poster, which is a search."
    notes = publish(pool, configs, "donor", quoted, seen=["Where did we put the poster?"])
    kept = ["the instructions of decide are not shared: they, or what they were made from, may quote a query"]
    assert notes == kept
    assert pool.store.read("donor") is None
    assert publish(pool, configs, "donor", "Donor's requests are searches.") == kept


def test_what_was_made_from_instructions_that_must_not_leave_stays_too() -> None:
    """Their queries are older than the window, so nothing that is asked now would show the quotation."""
    old = program_with("Such as: where did we put the old poster.")
    new = program_with("Such as: where did we put the old poster. Be brief.")
    baseline = ROUTING.build_program(LABELS)
    kept = manifest_of(serialize(ROUTING, "donor", LABELS, old), "v")
    free = kept.model_copy(update={"shareable": ["decide"]})
    assert shareable(ROUTING, LABELS, new, [old, baseline], kept, "donor", ["other queries"]) == []
    assert shareable(ROUTING, LABELS, new, [old, baseline], free, "donor", ["other queries"]) == ["decide"]
    assert shareable(ROUTING, LABELS, program_with(BASELINE), [baseline], None, "donor", []) == []


def test_baseline_instructions_are_not_published(pool: Pool, configs: SqliteConfigStore) -> None:
    assert publish(pool, configs, "donor", BASELINE) == []
    assert pool.store.read("donor") is None


def test_a_store_that_fails_is_a_note_for_the_promotion_stands(
    pool: Pool, configs: SqliteConfigStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(files: ObjectStore, path: str, content: bytes) -> None:
        raise ArtifactStoreUnavailable("gone", "wait")

    monkeypatch.setattr(ObjectStore, "replace", fail)
    assert publish(pool, configs, "donor") == ["the instructions are not shared: gone -> wait"]


@given(words, words, st.integers(0, 7), st.integers(0, 12), words)
def test_five_words_in_a_row_of_a_query_never_leave_the_tenant(
    before: list[str], after: list[str], start: int, length: int, query: list[str]
) -> None:
    taken = query[start : start + length]
    instructions = ", ".join([*before, *taken, *after]).upper()
    why = gives_away(instructions, "acme", [" ".join(query)])
    if len(taken) >= 5 or (len(query) in {3, 4} and taken == query):
        assert why == "they quote a query"
    if why is None:
        said = " ".join([*before, *taken, *after]).casefold().split()
        asked = [word.casefold() for word in query]
        runs = [asked[i : i + 5] for i in range(len(asked) - 4)]
        assert not any(said[i : i + 5] in runs for i in range(len(said)))


@given(words)
def test_instructions_that_share_no_words_with_any_query_may_leave(query: list[str]) -> None:
    assert gives_away(BETTER, "acme", [" ".join(query)]) is None


@pytest.mark.parametrize("named", ["As ACME's users do", "ask acme_agent", "acme-corp"])
def test_a_tenants_name_never_leaves_it(named: str) -> None:
    assert gives_away(named, "acme:eu", []) == "they name the tenant"
    assert gives_away(named, "other", []) is None


def test_scripts_without_spaces_are_compared_by_characters() -> None:
    assert gives_away("例えば「昨日の会議の録音」", "acme", ["昨日の会議の録音を再生して"]) == "they quote a query"


def shared_by(
    tenant: str,
    *,
    gain: float = 0.3,
    cases: int = 200,
    instructions: Mapping[str, str] | None = None,
    fingerprint: str = "f",
    labels: Sequence[str] = (),
) -> SharedInstructions:
    return shared_of(
        tenant,
        fingerprint=fingerprint,
        gain=gain,
        cases=cases,
        labels=list(labels),
        instructions=dict(instructions or {"one": f"by {tenant}"}),
    )


def chosen(*shared: SharedInstructions, labels: Sequence[str] = ("a", "b")) -> dict[str, str]:
    found = choose(shared, fingerprint="f", predictors=["one", "two"], labels=labels)
    return {name: each.tenant_id for name, each in found.items()}


def test_each_predictor_gets_the_instructions_with_the_best_proven_gain() -> None:
    small = shared_by("small", gain=0.1, instructions={"one": "x", "two": "y"})
    large = shared_by("large", gain=0.2, instructions={"one": "x"})
    assert chosen(small, large) == {"one": "large", "two": "small"}


@given(st.permutations([shared_by("b"), shared_by("a"), shared_by("0", cases=150), shared_by("d", gain=0.2)]))
def test_equal_gains_go_to_more_cases_and_then_always_to_the_same(order: list[SharedInstructions]) -> None:
    assert chosen(*order) == {"one": "a"}


def test_other_signatures_foreign_agents_and_unfit_lengths_are_passed_over() -> None:
    assert chosen(shared_by("x", fingerprint="other")) == {}
    assert chosen(shared_by("x", instructions={"one": "Bills go to billing_agent."}, labels=["billing_agent"])) == {}
    assert chosen(shared_by("x", instructions={"one": "Bills go to a."}, labels=["a", "c"])) == {"one": "x"}
    assert chosen(shared_by("x", instructions={"one": " "})) == {}
    assert chosen(shared_by("x", instructions={"one": "x" * (MAX_INSTRUCTIONS_CHARS + 1)})) == {}


def test_no_tenants_folder_can_be_the_shared_one(pool: Pool, configs: SqliteConfigStore, root: Path) -> None:
    publish(pool, configs, "shared")
    store(artifacts_of(root, "shared"), serialize(ROUTING, "shared", LABELS, program_with("x")))
    assert sorted(path.name for path in root.iterdir()) == ["_shared", "shared"]
