"""Modules declared in a YAML file: classifiers without Python code (see docs/add-a-module.md)."""

from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.span_contract import CONFIRMING, REFUTING, UNDECIDED, SpanContract
from autoopt_pipeline.validation import Strict, UniqueKeys, first_error

PROGRAM = "autoopt_pipeline.modules.builtin.programs:declared_program"

# Every prompt contains all labels with their descriptions.
MAX_LABELS = 100

MAX_LABEL_CHARS = 100

# Field names that DSPy or the programs use for something else; so are names that begin with `model_`.
KEPT_FIELD_NAMES = frozenset(
    {
        "completed", "confidence", "config", "demos", "fields", "input_fields", "instructions", "lm", "new_signature",
        "output_fields", "self", "signature",
    }
)  # fmt: skip


def _field_name(name: str) -> str:
    if not name.isidentifier() or not name.isascii() or not name.islower() or name.startswith("_") or len(name) > 40:
        raise ValueError(f"{name[:60]!r} is no field name: use lower-case letters, digits and '_'")
    if name in KEPT_FIELD_NAMES or name.startswith("model_"):
        raise ValueError(f"{name!r} means something else to DSPy: give the field another name")
    return name


def _attribute_path(path: str) -> str:
    name, colon, key = path.partition(":")
    # Phoenix reads the names of selected attributes as Python expressions, and `a-b` as a difference.
    if not all(part.isidentifier() and not iskeyword(part) for part in name.split(".")) or (colon and not key):
        raise ValueError(
            f"{path[:60]!r} is no attribute path that Phoenix can select: write words with dots between them "
            "('triage.text'), and ':key' after them for a key of a JSON object ('input.value:text')"
        )
    return path


def _label_name(name: str) -> str:
    if name.lower() in CONFIRMING | REFUTING | UNDECIDED:
        raise ValueError(f"{name!r} is what a reviewer says of a decision: call the label something else")
    # DSPy quotes labels in the prompt without escaping, so a backslash would spoil the list.
    fit = name.isprintable() and name[:1].isalnum() and name == name.rstrip() and "\\" not in name
    if not fit or len(name) > MAX_LABEL_CHARS:
        raise ValueError(
            f"{name[:60]!r} is no label: use up to {MAX_LABEL_CHARS} characters, the first a letter or digit, and none "
            "of them a backslash"
        )
    return name


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, Field(min_length=1)]
FieldName = Annotated[str, AfterValidator(_field_name)]
LabelName = Annotated[str, AfterValidator(_label_name)]
# One attribute path, or several of which the first present one counts (see `span_contract`).
Paths = Annotated[
    tuple[Annotated[str, AfterValidator(_attribute_path)], ...], Field(min_length=1), BeforeValidator(_as_list)
]


class DeclaredModule(Strict):
    """One decision of the application: text inputs, and one of a few labels as output."""

    description: Text = Field(description="The task, as the prompt states it.")
    span: Text = Field(description="Name of the spans that hold the decisions.")
    inputs: dict[FieldName, Paths] = Field(min_length=1, description="The attribute paths of each input.")
    required: tuple[str, ...] | None = Field(
        None, min_length=1, description="Inputs that a decision must have; by default all."
    )
    output: dict[FieldName, Paths] = Field(min_length=1, max_length=1, description="Where the answer stands.")
    labels: dict[LabelName, str] = Field(
        min_length=2, max_length=MAX_LABELS, description="The possible answers with their meanings."
    )
    confidence: Paths | None = Field(None, description="Where it stands how sure the application was, from 0 to 1.")
    success: Paths | None = Field(None, description="Where it stands whether the decision turned out well.")
    annotation: Text = Field(description="Name of the annotations that judge the answer.")
    scheduled_by_default: bool = True

    @field_validator("required")
    @classmethod
    def _as_a_set(cls, required: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return tuple(dict.fromkeys(required)) if required else required

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        for name in self.required or ():
            if name not in self.inputs:
                raise ValueError(f"{name!r} is required, and is none of the inputs {', '.join(self.inputs)}")
        if both := self.inputs.keys() & self.output.keys():
            raise ValueError(f"{both.pop()!r} is both an input and the output")
        return self

    def spec(self, name: str) -> ModuleSpec:
        return ModuleSpec(
            name=name,
            description=self.description,
            contract=SpanContract(
                span_name=self.span,
                inputs=self.inputs,
                required=self.required or tuple(self.inputs),
                answers=self.output,
                confidence=self.confidence or (),
                success=self.success or (),
                annotation=self.annotation,
            ),
            outputs=tuple(self.output),
            labels=tuple(Label(label, text) for label, text in self.labels.items()),
            program=PROGRAM,
            scheduled_by_default=self.scheduled_by_default,
        )


class ModulesFile(Strict):
    """Contents of the file."""

    modules: dict[str, DeclaredModule]

    @model_validator(mode="after")
    def _one_judgement_each(self) -> Self:
        """Check that an annotation's name belongs to one module only."""
        seen: dict[tuple[str, str], str] = {}
        for name, module in self.modules.items():
            other = seen.setdefault((module.span, module.annotation), name)
            if other != name:
                raise ValueError(
                    f"{other!r} and {name!r} read the same spans and both have the annotation {module.annotation!r}"
                )
        return self


def declared_modules(path: Path) -> list[ModuleSpec]:
    """Return the modules of a file. Raises `InvalidSettings` with one line: file, place and value."""
    where = f"AUTOOPT_MODULES_FILE {path}"
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - makes only text, lists and mappings
        return [module.spec(name) for name, module in ModulesFile.model_validate(data).modules.items()]
    except OSError as e:
        raise InvalidSettings(f"{where}: {e.strerror}", "name a readable YAML file, or unset it") from None
    except ValidationError as e:
        problem = first_error(e) if isinstance(data, dict) else "the file does not begin with 'modules:'"
        raise InvalidSettings(f"{where}: {problem}", _REMEDY) from None
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise InvalidSettings(f"{where}{line}: {e.problem}", _REMEDY) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InvalidSettings(f"{where}: {e}", _REMEDY) from None


_REMEDY = "correct the file (docs/add-a-module.md shows one)"


class _Loader(UniqueKeys, yaml.BaseLoader):
    """Reads every value as text, because a label `no` is not a boolean."""
