"""Whatever others wrote is either what it should be or one error of ours: configurations, stored files, ids.

Spans have tests of their own (test_malformed_spans.py). `make fuzz` tries far more cases of both.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.errors import AutooptError, InvalidArtifact, InvalidConfig, InvalidTenantId
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.monitoring.alerts.collect import AlertCursor
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import LedgerEntry, Manifest, Program
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore, read_manifests, read_pointers
from autoopt_pipeline.scheduling.conditions import Attempts, decide
from autoopt_pipeline.tenant_id import safe_name, validate_tenant_id
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, parse_config, with_field
from autoopt_pipeline.tenants.seed_import import read_rows
from autoopt_pipeline.tenants.stores.base import NEVER, StoredConfig
from autoopt_pipeline.tenants.yaml_format import from_text
from autoopt_pipeline.text import printable
from tests.support.sequential_tests import made_step
from tests.support.span_values import values
from tests.support.stored_programs import LABELS, made_program, manifest_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOMBS = ["[" * 5_000, '{"a":' * 5_000, "9" * 5000, "1e999999", '"\\ud800"', "NaN", "\x00", "\ufeff{}"]


names = st.sampled_from(list(RoutingConfigUnified.model_fields)) | st.text(max_size=5)
NESTED = [
    *("model", "api_base", "api_key_env", "timeout_seconds", "max_lm_calls", "max_tokens", "max_days", "start", "end"),
    *("time_zone", "weekdays", "name", "description", "retrain_after", "optimization_interval_seconds", "routing"),
]
settings_of_a_part = st.dictionaries(
    st.sampled_from(NESTED),
    values | st.dictionaries(st.sampled_from(["mode", "retrain_after"]), values, max_size=2),
    max_size=3,
)
fields = st.dictionaries(names, values | settings_of_a_part | st.lists(settings_of_a_part, max_size=2), max_size=4)
configurations = values | fields | fields.map(lambda found: {**found, "tenant_id": "acme"})
texts = st.text() | configurations.map(lambda found: json.dumps(found, default=str)) | st.sampled_from(BOMBS)


def one_line(error: AutooptError) -> None:
    assert printable(str(error)) == str(error)
    assert "\n" not in str(error)


def sound(config: RoutingConfigUnified) -> None:
    """It survives storage, and the sensor can decide by it."""
    assert parse_config(json.loads(json.dumps(chosen_fields(config))), where="stored") == config
    decide(
        config,
        get_module("routing"),
        Attempts(outcome_at=NOW, failures=9, last_failure_at=NOW),
        None,
        now=NOW,
        jitter=1,
    )


@given(configurations)
def test_any_json_is_a_configuration_to_plan_by_or_one_line(data: object) -> None:
    try:
        sound(parse_config(data, where="fuzz"))
    except InvalidConfig as e:
        one_line(e)


@given(texts)
def test_any_text_in_the_editor_is_a_configuration_or_one_line(text: str) -> None:
    try:
        sound(from_text(text, StoredConfig("acme", 1, NEVER, None)))
    except InvalidConfig as e:
        one_line(e)


@given(texts | st.lists(configurations).map(lambda rows: "\n".join(json.dumps(row, default=str) for row in rows)))
def test_any_file_is_imported_row_by_row_or_refused_in_one_line(text: str) -> None:
    try:
        imported, refused = read_rows(text)
    except InvalidConfig as e:
        one_line(e)
        return
    for one in imported:
        sound(one.config)
    assert all("\n" not in row.reason for row in refused)


@given(names, st.sampled_from(["", ".routing", ".model", ".x.y"]), texts)
def test_any_value_of_a_field_is_taken_or_refused_in_one_line(field: str, below: str, value: str) -> None:
    try:
        sound(with_field(RoutingConfigUnified(tenant_id="acme"), field + below, value))
    except InvalidConfig as e:
        one_line(e)


@given(texts)
def test_any_stored_document_is_read_as_something(text: str) -> None:
    assert StoredConfig("acme", 1, NEVER, text).document is not None or text.strip() == "null"


@given(st.text() | st.text("acme:.-_/%\\\0", max_size=12))
def test_any_text_is_a_tenant_with_a_plain_folder_or_no_tenant(text: str) -> None:
    try:
        assert validate_tenant_id(text) == text
    except InvalidTenantId as e:
        one_line(e)
        return
    assert set(safe_name(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a part cut out or replaced, or with one of its JSON values replaced, or something else."""
    place = st.integers(0, len(content))

    def spliced(start: int, end: int, new: bytes) -> bytes:
        return content[: min(start, end)] + new + content[max(start, end) :]

    def replaced(path: list[int], new: object) -> bytes:
        document = json.loads(content)
        at: Any = document
        for step in path:
            keys = list(at) if isinstance(at, dict) else list(range(len(at))) if isinstance(at, list) else []
            if not keys:
                break
            key = keys[step % len(keys)]
            if not isinstance(at[key], dict | list) or step == path[-1]:
                at[key] = new
                break
            at = at[key]
        return json.dumps(document, default=str).encode()

    return st.one_of(
        st.builds(spliced, place, place, st.binary(max_size=8)),
        st.builds(replaced, st.lists(st.integers(0, 20), min_size=1, max_size=6), values),
        st.binary(),
        st.sampled_from([bomb.encode() for bomb in BOMBS]),
    )


PROGRAM = made_program("acme", demos=["where is it"], instructions={"decide": "think"})
MANIFEST = manifest_of(PROGRAM, "20260101T000000Z-aaaaaaaa")
VERSION = f"acme/routing/versions/{MANIFEST.version}"


@pytest.fixture(scope="module")
def files() -> ObjectStore:
    return ObjectStore("memory://fuzz")


@pytest.fixture(scope="module")
def artifacts(files: ObjectStore) -> VersionStore:
    return VersionStore(files, "acme", "routing")


@given(st.data())
def test_a_damaged_version_is_the_version_or_an_invalid_artifact(
    files: ObjectStore, artifacts: VersionStore, data: st.DataObject
) -> None:
    program, manifest = PROGRAM.encode(), MANIFEST.model_dump_json().encode()
    files.replace(f"{VERSION}/program.json", data.draw(st.just(program) | mutated(program)))
    files.replace(f"{VERSION}/manifest.json", data.draw(st.just(manifest) | mutated(manifest)))
    with suppress(InvalidArtifact):
        assert artifacts.load(MANIFEST.version) == PROGRAM
    with suppress(InvalidArtifact):
        artifacts.versions()
    found = read_manifests(files, {("acme", "routing"): MANIFEST.version})["acme", "routing"]
    assert isinstance(found, Manifest | InvalidArtifact)


@given(mutated(PROGRAM.encode()))
def test_a_program_that_somebody_wrote_only_ever_shows_other_words(
    files: ObjectStore, artifacts: VersionStore, raw: bytes
) -> None:
    """Whoever may write a program may write its digest, too."""
    manifest = MANIFEST.model_copy(update={"program_sha256": hashlib.sha256(raw).hexdigest()})
    files.replace(f"{VERSION}/program.json", raw)
    files.replace(f"{VERSION}/manifest.json", manifest.model_dump_json().encode())
    own = get_module("routing").build_program(LABELS)
    try:
        program = deserialize(get_module("routing"), LABELS, artifacts.load(MANIFEST.version))
    except InvalidArtifact as e:
        one_line(e)
        return
    for (_, made), (_, plain) in zip(program.named_predictors(), own.named_predictors(), strict=True):
        assert made.lm is None
        assert vars(made).keys() == vars(plain).keys()
        assert made.signature.fields.keys() == plain.signature.fields.keys()


STEP = made_step("v", labels=["a"], scores=[(0.0, 1.0), (1.0, 1.0)], at=NOW)
ENTRY = LedgerEntry(sequence=1, at=NOW, candidate_digest="c", holdout_digest="h", incumbent=None, alpha=0.03)
MOVE = {
    "sequence": 1,
    "at": NOW.isoformat(),
    "actor": "t",
    "reason": "",
    "from_version": None,
    "to_version": MANIFEST.version,
}
POINTER = {"version": MANIFEST.version, "sequence": 1, "canary": {"v": 0.5}}
WITHDRAWAL = {"at": NOW.isoformat(), "actor": "t", "reason": ""}
RECORDS: dict[str, tuple[object, Callable[[VersionStore], object]]] = {
    "transitions/00000001.json": (MOVE, lambda own: (own.transitions(), own.active())),
    "ledger/00000001.json": (ENTRY.model_dump(mode="json"), VersionStore.ledger),
    "sequential_tests/00000001.json": (
        STEP.model_dump(mode="json"),
        lambda own: (own.sequential_test(), own.sequential_test_steps()),
    ),
    "rollouts/00000001.json": ({"sequence": 1}, VersionStore.rollout_results),
    "active.json": (POINTER, VersionStore.active),
    f"versions/{MANIFEST.version}/withdrawn.json": (WITHDRAWAL, lambda own: own.withdrawal(MANIFEST.version)),
}


@pytest.mark.parametrize("path", RECORDS)
@given(st.data())
def test_a_record_that_somebody_wrote_is_read_or_is_an_invalid_artifact(path: str, data: st.DataObject) -> None:
    document, read = RECORDS[path]
    valid = json.dumps(document).encode()
    files = ObjectStore(f"memory://fuzz-{path.partition('/')[0]}")
    files.replace(f"acme/routing/{path}", data.draw(st.just(valid) | mutated(valid)))
    try:
        read(VersionStore(files, "acme", "routing"))
        VersionStore(files, "acme", "routing").last_sequential_test_step()
    except InvalidArtifact as e:
        one_line(e)
    pointer = read_pointers(files, [("acme", "routing")])["acme", "routing"]
    assert not isinstance(pointer, Exception) or isinstance(pointer, InvalidArtifact)


@given(st.data())
def test_what_others_watch_is_read_or_left(data: st.DataObject) -> None:
    files = ObjectStore("memory://fuzz-watched")
    files.replace("_watches/routing/acme.json", data.draw(mutated(b'{"tenant_id": "acme", "module": "routing"}')))
    indexed_rollouts(files)


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_cursor_of_an_alert_sensor_is_its_own_or_none(cursor: str) -> None:
    assert AlertCursor.load(cursor) is None


def test_a_stored_program_is_unchanged_by_packing_and_unpacking() -> None:
    """The mutations above begin from something that is valid."""
    assert deserialize(get_module("routing"), LABELS, Program.model_validate_json(PROGRAM.encode()))
