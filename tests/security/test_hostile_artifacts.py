"""What somebody who may write the artifact root can put there, and what becomes of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.serialization import deserialize
from autoopt_pipeline.registry.version_store import VersionStore, read_pointers
from tests.support.stored_programs import LABELS, made_program, manifest_of, store

ROUTING = get_module("routing")


@pytest.fixture
def acme(tmp_path: Path) -> VersionStore:
    return VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")


def tampered(change: dict[str, Any]) -> Any:
    """A program whose predictors' states were changed, and what becomes of it when it is to serve."""
    program = made_program("acme", demos=["where is it"])
    state = {name: {**predictor, **change} for name, predictor in program.state.items()}
    return deserialize(ROUTING, LABELS, program.model_copy(update={"state": state}))


@pytest.mark.parametrize(
    "lm",
    [
        {"model": "openai/x", "api_base": "http://elsewhere/v1"},
        {"_dspy_lm_class": "subprocess.Popen", "args": ["true"]},
        "openai/x",
    ],
)
def test_a_program_that_names_a_language_model_is_refused(lm: object) -> None:
    """The application would ask it, with its own key."""
    with pytest.raises(InvalidArtifact, match="was not written by autoopt"):
        tampered({"lm": lm})


@pytest.mark.parametrize(
    "change",
    [
        {"forward": "print"},
        {"config": {"api_base": "http://elsewhere"}},
        {"demos": "x"},
        {"demos": [1]},
        {"signature": {"instructions": ["x"]}},
        {"signature": None},
        {"extended_signature": {}},
    ],
)
def test_a_program_that_sets_anything_but_its_words_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidArtifact, match="was not written by autoopt"):
        tampered(change)


@pytest.mark.parametrize("version", ["../../rival/routing/versions/v", "..", "a/b", "", "v\n", ".", "\u202ev"])
def test_a_pointer_leads_to_no_other_folder(acme: VersionStore, tmp_path: Path, version: str) -> None:
    folder = tmp_path / "acme" / "routing"
    (folder / "transitions").mkdir(parents=True)
    transition = {
        "sequence": 1,
        "at": "2026-01-01T00:00:00Z",
        "actor": "t",
        "reason": "",
        "from_version": None,
        "to_version": version,
    }
    (folder / "transitions" / "00000001.json").write_text(json.dumps(transition))
    (folder / "active.json").write_text(json.dumps({"version": version, "sequence": 1}))
    with pytest.raises(InvalidArtifact):
        acme.active()
    assert isinstance(
        read_pointers(ObjectStore(str(tmp_path)), [("acme", "routing")])["acme", "routing"], InvalidArtifact
    )


def test_a_link_to_another_tenants_version_is_refused(acme: VersionStore, tmp_path: Path) -> None:
    rival = VersionStore(ObjectStore(str(tmp_path)), "rival", "routing")
    version = store(rival, made_program("rival", demos=["a secret plan"]))
    versions = tmp_path / "acme" / "routing" / "versions"
    versions.mkdir(parents=True)
    (versions / version).symlink_to(tmp_path / "rival" / "routing" / "versions" / version)
    with pytest.raises(InvalidArtifact, match="belongs to rival/routing"):
        acme.load(version)
    with pytest.raises(InvalidArtifact, match="belongs to rival/routing"):
        acme.transition(version, expected=None, actor="t", reason="")


def test_a_move_under_another_number_is_refused_and_files_of_others_are_left_alone(
    acme: VersionStore, tmp_path: Path
) -> None:
    version = store(acme, made_program("acme"), active=True)
    folder = tmp_path / "acme" / "routing"
    (folder / "transitions" / "zzz.txt").write_text("of an editor")
    (folder / "sequential_tests").mkdir()
    (folder / "sequential_tests" / "zzz.json").write_text("{}")
    assert [transition.to_version for transition in acme.transitions()] == [version]
    assert (acme.sequential_test(), acme.last_sequential_test_step()) == ([], 0)
    (folder / "transitions" / "00000002.json").write_bytes((folder / "transitions" / "00000001.json").read_bytes())
    with pytest.raises(InvalidArtifact, match=r"00000002\.json: its content is that of number 1"):
        acme.active()


def test_a_huge_or_deep_program_is_an_error_of_one_line(acme: VersionStore, tmp_path: Path) -> None:
    for raw in (b'{"state": ' + b'{"a": ' * 100_000, b'{"a": [' + b"0," * 1_000_000 + b"0]}"):
        manifest = manifest_of(made_program("acme"), "v").model_copy(
            update={"program_sha256": hashlib.sha256(raw).hexdigest()}
        )
        folder = tmp_path / "acme" / "routing" / "versions" / "v"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "program.json").write_bytes(raw)
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        with pytest.raises(InvalidArtifact) as error:
            acme.load("v")
        assert len(str(error.value)) < 500
