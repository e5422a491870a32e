"""What an optimization found, as plain values for people and for the next plan."""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import dspy

from autoopt_pipeline.evaluation.calibration import Bin, reliability
from autoopt_pipeline.evaluation.cases import PairedCase, ScoredAnswer
from autoopt_pipeline.evaluation.gate import GateDecision
from autoopt_pipeline.evaluation.runner import Answer
from autoopt_pipeline.evaluation.split import Split
from autoopt_pipeline.modules.spec import Example
from autoopt_pipeline.registry.module_versions import ModuleVersions
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.serialization import demo_query, instantiate

NO_ANSWER = "(no valid answer)"


@dataclass(frozen=True)
class CandidateStats:
    """One optimizer's program: how it did in the race, and the LM calls that making and judging it took.

    `dev_score` (0 to 1) is of the `judged_on` dev examples that it was asked before it was dropped. The finalist
    was not dropped: its `dropped_after` is None. `unread` counts answers that could not be graded, by why.
    """

    optimizer: str
    dev_score: float
    judged_on: int
    making_calls: int
    judging_calls: int
    dropped_after: int | None
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def lm_calls(self) -> int:
        return self.making_calls + self.judging_calls

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ComparedExample:
    """One holdout example with what both programs answered."""

    example: Example
    incumbent: Answer
    candidate: Answer
    case: PairedCase


@dataclass(frozen=True)
class Change:
    """What one predictor of the candidate shows the model that the incumbent's does not.

    Demos are `query -> answer`; `instructions` is a line-wise difference, empty where they are the same.
    """

    predictor: str
    demos: int
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    instructions: str


@dataclass(frozen=True)
class Report:
    """Everything a person wants to know of one optimization.

    `unusable` counts decisions by why they teach nothing, and `malformed` those of them that could not be read.
    `unread` counts the answers that could not be graded, by program and by why: on the holdout, or where that was not
    touched, on the dev examples.
    """

    tenant_id: str
    module: str
    verdict: Verdict
    reason: str
    window_start: datetime
    window_end: datetime
    decisions: int
    examples: dict[str, int]
    provenance: dict[str, int]
    balance: dict[str, int]
    unusable: dict[str, int]
    incumbent_version: str | None
    version: str | None
    active_version: str | None
    lm: str
    stand_in: bool
    malformed: int = 0
    teacher_lm: str | None = None
    teacher_calls: int = 0
    lm_calls: int = 0
    lm_tokens: int = 0
    lm_input_tokens: int = 0
    lm_output_tokens: int = 0
    lm_cached_tokens: int = 0
    seconds: float = 0.0
    tried: tuple[CandidateStats, ...] = ()
    incumbent_dev_score: float | None = None
    optimizer: str | None = None
    gate: GateDecision | None = None
    compared: tuple[ComparedExample, ...] = ()
    unread: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fixed(self) -> list[ComparedExample]:
        return [each for each in self.compared if each.case.fixed]

    @property
    def broken(self) -> list[ComparedExample]:
        return [each for each in self.compared if each.case.broken]

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """Counts by right label, then by the candidate's."""
        table: dict[str, Counter[str]] = {}
        for each in self.compared:
            table.setdefault(each.case.label, Counter())[each.case.candidate.label or NO_ANSWER] += 1
        return {label: dict(sorted(row.items())) for label, row in sorted(table.items())}

    @property
    def reliability(self) -> tuple[Bin, ...]:
        """How far the candidate's confidence can be believed."""
        return reliability([each.case.candidate for each in self.compared])


def sizes(split: Split) -> dict[str, int]:
    return {
        "train": len(split.train),
        "dev": len(split.dev),
        "holdout": len(split.holdout),
        "guard": len(split.guard),
        "duplicates": split.duplicates,
        "near_duplicates": split.near_duplicates,
        "dropped": split.dropped_to_protect_holdout,
        "shown": split.shown,
    }


def compared(
    examples: Sequence[Example],
    before: Sequence[Answer],
    after: Sequence[Answer],
    grades: tuple[Sequence[ScoredAnswer], Sequence[ScoredAnswer]],
) -> list[ComparedExample]:
    """Put the answers of incumbent and candidate side by side."""
    return [
        ComparedExample(example, old, new, PairedCase(example.label, old_grade, new_grade))
        for example, old, new, old_grade, new_grade in zip(examples, before, after, *grades, strict=True)
    ]


def changes_between(incumbent: dspy.Module, candidate: dspy.Module) -> tuple[Change, ...]:
    """What the candidate shows the model that the incumbent does not, predictor by predictor."""
    before = dict(incumbent.named_predictors())
    changes = []
    for name, predictor in candidate.named_predictors():
        had, has = _demos(before[name].signature, before[name]), _demos(predictor.signature, predictor)
        old, new = before[name].signature.instructions, predictor.signature.instructions
        # Two lines of header, and without context every other line that is no change begins with @@.
        difference = [*difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)][2:]
        changes.append(
            Change(
                predictor=name,
                demos=len(has),
                added=tuple(demo for demo in has if demo not in had),
                dropped=tuple(demo for demo in had if demo not in has),
                instructions="\n".join(line for line in difference if line.startswith(("+", "-"))),
            )
        )
    return tuple(changes)


def changes_of_versions(programs: ModuleVersions, before: str | None, after: str | None) -> tuple[Change, ...]:
    """What one stored version shows the model that another does not; None is the baseline, of a composed module without
    what its parts have learnt. Raises `InvalidArtifact` where one of them cannot be read."""
    stored = {name: programs.artifacts.load(name) for name in (before, after) if name}
    # The labels of both, so that no demo is left out for an answer that one of them did not know.
    labels = list(dict.fromkeys(label for each in stored.values() for label in each.labels))
    module = programs.artifacts.module
    older, newer = (instantiate(stored[name] if name else None, module, labels) for name in (before, after))
    return changes_between(older, newer)


def _demos(signature: type[dspy.Signature], predictor: dspy.Predict) -> list[str]:
    """`query -> answer`, the answer being all outputs that decide something."""
    deciding = [name for name in signature.output_fields if name not in {"reasoning", "confidence"}]
    return [
        f"{demo_query(signature, demo)} -> {', '.join(str(demo.get(name)) for name in deciding)}"
        for demo in predictor.demos
    ]
