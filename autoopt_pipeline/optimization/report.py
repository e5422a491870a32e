"""What an optimization found, as plain values for people and for the next plan."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import dspy

from autoopt_pipeline.modules.spec import Example
from autoopt_pipeline.optimization.evaluation import Answer
from autoopt_pipeline.optimization.gate import GateDecision, Verdict
from autoopt_pipeline.optimization.split import Split, normalize_query


@dataclass(frozen=True)
class Tried:
    """One optimizer's program: its score on the dev examples and what it cost."""

    optimizer: str
    dev_score: float
    lm_calls: int


@dataclass(frozen=True)
class Report:
    """Everything a person wants to know of one optimization."""

    tenant_id: str
    module: str
    verdict: Verdict
    reason: str
    window_start: datetime
    window_end: datetime
    decisions: int
    examples: dict[str, int]
    provenance: dict[str, int]
    unusable: dict[str, int]
    incumbent_version: str | None
    version: str | None
    active_version: str | None
    lm: str
    stand_in: bool
    lm_calls: int = 0
    lm_tokens: int = 0
    seconds: float = 0.0
    tried: tuple[Tried, ...] = ()
    incumbent_dev_score: float | None = None
    optimizer: str | None = None
    gate: GateDecision | None = None
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    fixed: tuple[Example, ...] = ()
    broken: tuple[Example, ...] = ()
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def sizes(split: Split) -> dict[str, int]:
    return {
        "train": len(split.train),
        "dev": len(split.dev),
        "holdout": len(split.holdout),
        "guard": len(split.guard),
        "duplicates": split.duplicates,
        "near_duplicates": split.near_duplicates,
        "dropped": split.dropped_to_protect_holdout,
    }


def confusion(examples: Sequence[Example], answers: Sequence[Answer]) -> dict[str, dict[str, int]]:
    """Counts by right label, then by the candidate's answer."""
    table: dict[str, Counter[str]] = {}
    for example, answer in zip(examples, answers, strict=True):
        table.setdefault(example.label, Counter())[answer.label or "(no valid answer)"] += 1
    return {label: dict(sorted(row.items())) for label, row in sorted(table.items())}


def changes_between(incumbent: dspy.Module, candidate: dspy.Module) -> tuple[str, ...]:
    """What the candidate shows the model that the incumbent does not, predictor by predictor."""
    before = dict(incumbent.named_predictors())
    changes = []
    for name, predictor in candidate.named_predictors():
        had = {normalize_query(str(demo.get("query", ""))) for demo in before[name].demos}
        has = {normalize_query(str(demo.get("query", ""))) for demo in predictor.demos}
        changes.append(f"{name}: {len(has)} demos, {len(has - had)} of them new, {len(had - has)} dropped")
        old, new = before[name].signature.instructions, predictor.signature.instructions
        if old != new:
            changes.append(f"{name}: instructions were {old!r} and are {new!r}")
    return tuple(changes)
