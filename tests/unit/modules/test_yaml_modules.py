"""Modules that a YAML file describes."""

from pathlib import Path
from typing import Any

import dspy
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.evaluation.runner import Answer, answer_all
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.modules.catalog import KEPT_NAMES
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.modules.yaml_modules import KEPT_FIELD_NAMES, PROGRAM, declared_modules
from autoopt_pipeline.registry.serialization import deserialize, serialize
from autoopt_pipeline.serving._forms import span_attributes
from autoopt_pipeline.span_contract import CONFIRMING, REFUTING, UNDECIDED, SpanContract
from autoopt_pipeline.tenants.config import LMSettings
from tests.support.sample_decisions import annotation, decision
from tests.support.urgency_module import URGENCY


def declared(folder: Path, text: str) -> list[ModuleSpec]:
    (folder / "modules.yaml").write_text(text, encoding="utf-8")
    return declared_modules(folder / "modules.yaml")


def refusal(folder: Path, text: str) -> InvalidSettings:
    with pytest.raises(InvalidSettings) as refused:
        declared(folder, text)
    assert str(refused.value).startswith(f"AUTOOPT_MODULES_FILE {folder / 'modules.yaml'}")
    assert "\n" not in str(refused.value)
    return refused.value


def with_module(**changes: Any) -> str:
    module = {**yaml.safe_load(URGENCY)["modules"]["urgency"], **changes}
    fields = {name: value for name, value in module.items() if value is not None}
    return yaml.safe_dump({"modules": {"urgency": fields}}, sort_keys=False)


def test_everything_in_the_file_reaches_the_module(tmp_path: Path) -> None:
    (spec,) = declared(tmp_path, URGENCY)
    assert spec == ModuleSpec(
        name="urgency",
        description="How soon does the sender need an answer?",
        contract=SpanContract(
            span_name="support.triage",
            inputs={"text": ("triage.text", "input.value:text"), "customer": ("triage.customer",)},
            required=("text",),
            answers={"urgency": ("triage.urgency",)},
            confidence=("triage.confidence",),
            success=("triage.solved",),
            annotation="urgency_annotation",
        ),
        outputs=("urgency",),
        labels=(Label("now", "work has stopped"), Label("later", "no haste")),
        program=PROGRAM,
        scheduled_by_default=False,
    )


def test_all_inputs_are_required_and_the_module_scheduled_unless_it_says_otherwise(tmp_path: Path) -> None:
    (spec,) = declared(tmp_path, with_module(required=None, success=None, scheduled_by_default=None))
    assert spec.contract.required == ("text", "customer")
    assert spec.contract.success == ()
    assert spec.scheduled_by_default


def test_one_file_describes_several_modules(tmp_path: Path) -> None:
    urgency = yaml.safe_load(URGENCY)["modules"]["urgency"]
    both = {"urgency": urgency, "mood": {**urgency, "annotation": "mood_annotation"}}
    assert [spec.name for spec in declared(tmp_path, yaml.safe_dump({"modules": both}, sort_keys=False))] == [*both]


def test_decisions_become_examples_and_the_program_answers_with_a_label(tmp_path: Path) -> None:
    (spec,) = declared(tmp_path, URGENCY)
    assert spec.labels
    found = spec.build_examples(
        spec.labels,
        [
            decision({"triage.text": "all is down", "triage.urgency": "later"}, annotation("now")),
            decision({"triage.text": "x", "triage.urgency": "now", "triage.confidence": 0.9, "triage.solved": False}),
            decision({"triage.customer": "acme", "triage.urgency": "now"}),
        ],
    )
    (example,) = found.examples
    assert example.inputs == {"text": "all is down", "customer": ""}
    assert example.right == {"urgency": "now"}
    assert sum(found.unusable.values()) == 2
    (answer,) = ask(spec, [example])
    assert answer.values is not None
    assert answer.values["urgency"] in {"now", "later"}


def test_without_a_confidence_only_what_went_well_or_was_reviewed_is_learnt_from(tmp_path: Path) -> None:
    (spec,) = declared(tmp_path, with_module(confidence=None))
    assert spec.contract.confidence == ()
    read = {"triage.urgency": "now"}
    found = spec.build_examples(
        spec.labels or (),
        [
            decision({"triage.text": "it went well", **read, "triage.solved": True}),
            decision({"triage.text": "it did not", **read, "triage.solved": False}),
            decision({"triage.text": "nobody knows", **read}),
            decision({"triage.text": "somebody looked", **read}, annotation("correct")),
        ],
    )
    assert {example.inputs["text"] for example in found.examples} == {"it went well", "somebody looked"}
    assert found.unusable == {
        "the request failed and nobody reviewed it": 1,
        "not known to have gone well, and nobody reviewed it": 1,
    }


def test_what_serving_writes_of_a_module_without_a_confidence_is_read_again(tmp_path: Path) -> None:
    (spec,) = declared(tmp_path, with_module(confidence=None))
    written = span_attributes(spec.contract, {"text": "all is down"}, {"urgency": "now"}, 0.9)
    (example,) = spec.build_examples(spec.labels or (), [decision({**written}, annotation("correct"))]).examples
    assert (example.inputs["text"], example.right) == ("all is down", {"urgency": "now"})


def ask(spec: ModuleSpec, examples: list) -> list[Answer]:
    """What a program with one demo says after it was stored and loaded."""
    labels = spec.labels
    assert labels
    program = spec.build_program(labels)
    demo = {**examples[0].inputs, spec.output_field: labels[-1].name, "confidence": 0.9}
    for predictor in program.predictors():
        predictor.demos = [dspy.Example(**demo).with_inputs(*examples[0].inputs)]
    stored = deserialize(spec, labels, serialize(spec, "acme", labels, program))
    return answer_all(spec, stored, examples, metered_lm(LMSettings(model="stand-in"), Meter(100, 10**9)))


FIELD_NAMES = sorted(
    name
    for name in {*dir(dspy.Signature), *dir(type(dspy.Signature)), *dir(dspy.Example), *dir(dspy.Predict)}
    | {*dir(BaseModel), *KEPT_FIELD_NAMES, "class", "trace", "query", "reasoning", "labels", "n", "prediction"}
    if name.islower() and not name.startswith("_")
)


@pytest.mark.filterwarnings("ignore:Field name")
@pytest.mark.parametrize("role", ["inputs", "output"])
def test_a_field_name_is_refused_or_works(tmp_path: Path, role: str) -> None:
    refused = set()
    for name in FIELD_NAMES:
        try:
            (spec,) = declared(tmp_path, with_module(**{role: {name: "a.b"}, "required": None}))
        except InvalidSettings as e:
            assert f"{name!r} means something else to DSPy" in str(e)
            refused.add(name)
            continue
        found = spec.build_examples(
            spec.labels or (),
            [
                decision(
                    {"a.b": "now", "triage.text": "help", "triage.customer": "acme", "triage.urgency": "later"},
                    annotation("later"),
                )
            ],
        )
        (answer,) = ask(spec, list(found.examples))
        assert answer.values == {spec.output_field: "later"}, name
    assert refused == {name for name in FIELD_NAMES if name in KEPT_FIELD_NAMES or name.startswith("model_")}


def verdict(name: str) -> bool:
    return name.lower() in CONFIRMING | REFUTING | UNDECIDED


LABELS = st.lists(
    st.one_of(
        st.sampled_from(
            ["no", "yes", "on", "null", "~1", "1", "1.0", "0x1F", "2026-01-01", "True", "a: b", "C++", "é"]
        ),
        st.text(st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\\"), min_size=1, max_size=20),
    ).filter(lambda name: name[0].isalnum() and name.isprintable() and name == name.rstrip() and not verdict(name)),
    min_size=2,
    max_size=6,
    unique=True,
)


class Unquoted(yaml.SafeDumper):
    """Writes text as people do: without quotes wherever it would be text again if nothing else had a meaning."""


Unquoted.yaml_implicit_resolvers = {}


@settings(max_examples=50, deadline=None)
@given(labels=LABELS)
def test_labels_stay_the_text_that_they_are_and_can_be_answered(
    tmp_path_factory: pytest.TempPathFactory, labels: list[str]
) -> None:
    module = yaml.safe_load(URGENCY)["modules"]["urgency"] | {"labels": dict.fromkeys(labels, "")}
    text = yaml.dump({"modules": {"urgency": module}}, Dumper=Unquoted, sort_keys=False, allow_unicode=True)
    (spec,) = declared(tmp_path_factory.mktemp("labels"), text)
    assert spec.labels == tuple(Label(name) for name in labels)
    right = labels[-1]
    found = spec.build_examples(spec.labels, [decision({"triage.text": "help"}, annotation(right))])
    assert [example.label for example in found.examples] == [right]
    (answer,) = ask(spec, list(found.examples))
    assert answer.values == {"urgency": right}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file does not begin with 'modules:'"),
        ("- urgency", "the file does not begin with 'modules:'"),
        ("module: {}", "unknown field 'module'; did you mean 'modules'?"),
        ("modules: {urgency: [}", "line 1: expected the node content, but found '}'"),
        ("modules:\n  a: {}\n  a: {}", "line 3: 'a' appears twice"),
        ("modules:\n\ta: 1", "line 2: found character '\\t' that cannot start any token"),
        ("modules: {[a]: 1}", "found unhashable key"),
        ("modules: &x {a: *x}", "found unconstructable recursive node"),
        ("modules: \x07", "special characters are not allowed"),
        (URGENCY.replace("labels:", "lables:"), "modules.urgency: unknown field 'lables'; did you mean 'labels'?"),
        (with_module(span=None), "modules.urgency.span: is missing"),
        (with_module(span=""), "modules.urgency.span: is empty"),
        (with_module(labels={"now": ""}), "modules.urgency.labels: has too few entries, at least 2 needed"),
        (with_module(labels={"now": "", "Wrong": ""}), "modules.urgency.labels.Wrong: 'Wrong' is what a reviewer says"),
        (with_module(labels={"now": "", " x": ""}), "' x' is no label"),
        (with_module(labels={"now": "", "a\\b": ""}), "is no label"),
        (with_module(inputs={}), "modules.urgency.inputs: has too few entries, at least 1 needed"),
        (with_module(inputs={"Text": "a.b"}), "modules.urgency.inputs.Text: 'Text' is no field name"),
        (with_module(inputs={"text": []}), "modules.urgency.inputs.text: has too few entries, at least 1 needed"),
        (with_module(inputs={"text": "a.b", "urgency": "a.c"}), "'urgency' is both an input and the output"),
        (with_module(output={"a": "b", "c": "d"}), "modules.urgency.output: has too many entries, at most 1 allowed"),
        (with_module(required=["query"]), "'query' is required, and is none of the inputs text, customer"),
        (with_module(required=[]), "modules.urgency.required: has too few entries, at least 1 needed"),
        (with_module(confidence="sure-ness"), "modules.urgency.confidence.0: 'sure-ness' is no attribute path"),
        (with_module(success="email.from"), "modules.urgency.success.0: 'email.from' is no attribute path"),
        (with_module(success="input.value:"), "'input.value:' is no attribute path"),
        (with_module(scheduled_by_default="perhaps"), "modules.urgency.scheduled_by_default: has to be true or false"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    error = refusal(tmp_path, text)
    assert words in str(error)
    assert error.remedy.startswith("correct the file")


def test_two_modules_whose_reviews_could_not_be_told_apart_are_refused(tmp_path: Path) -> None:
    urgency = yaml.safe_load(URGENCY)["modules"]["urgency"]
    words = "'urgency' and 'mood' read the same spans and both have the annotation 'urgency_annotation'"
    assert words in str(
        refusal(tmp_path, yaml.safe_dump({"modules": {"urgency": urgency, "mood": urgency}}, sort_keys=False))
    )
    declared(tmp_path, yaml.safe_dump({"modules": {"urgency": urgency, "mood": {**urgency, "span": "other"}}}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, why in [(tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")]:
        with pytest.raises(InvalidSettings, match=why) as refused:
            declared_modules(path)
        assert str(path) in str(refused.value)
    (tmp_path / "modules.yaml").write_bytes(b"\xff")
    with pytest.raises(InvalidSettings, match="can't decode"):
        declared_modules(tmp_path / "modules.yaml")


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}(_[a-z0-9]{1,4})?", fullmatch=True)
PATHS = st.lists(NAMES.map(lambda n: f"app.{n}_x"), min_size=1, max_size=3)


@given(
    fields=st.lists(NAMES.map(lambda n: f"f_{n}"), min_size=2, max_size=5, unique=True),
    paths=PATHS,
    labels=LABELS,
    scheduled=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_sound_module_can_be_declared(
    tmp_path_factory: pytest.TempPathFactory,
    fields: list[str],
    paths: list[str],
    labels: list[str],
    scheduled: bool,
    data: st.DataObject,
) -> None:
    output, *inputs = fields
    required = data.draw(st.lists(st.sampled_from(inputs), min_size=1, unique=True))
    module = {
        "description": "Decide.",
        "span": data.draw(st.sampled_from(["app.decide", 'with "quotes"', "ünïcode"])),
        "inputs": dict.fromkeys(inputs, paths),
        "required": required,
        "output": {output: paths[0]},
        "labels": dict.fromkeys(labels, "meaning"),
        "confidence": paths,
        "annotation": "verdict",
        "scheduled_by_default": scheduled,
    }
    (spec,) = declared(tmp_path_factory.mktemp("any"), yaml.safe_dump({"modules": {"any": module}}, sort_keys=False))
    assert spec.contract.inputs == dict.fromkeys(inputs, tuple(paths))
    assert spec.contract.required == tuple(required)
    assert spec.contract.answers == {output: (paths[0],)}
    assert spec.outputs == (output,)
    assert spec.labels == tuple(Label(name, "meaning") for name in labels)
    assert spec.scheduled_by_default is scheduled
    assert set(spec.contract.columns) >= set(paths)


def test_the_names_that_dagster_keeps_are_the_ones_refused() -> None:
    from dagster._core.definitions.utils import DISALLOWED_NAMES

    assert {name for name in DISALLOWED_NAMES if name.islower()} == KEPT_NAMES
