"""What the registry stores of a module's versions: frozen records, as they stand in its files."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version as package_version
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoopt_pipeline.span_contract import BASELINE


class Verdict(StrEnum):
    PROMOTED = "promoted"
    CANARY = "canary"
    REJECTED = "rejected"
    WAITING = "waiting"
    AWAITING_APPROVAL = "awaiting_approval"
    NOT_ENOUGH_DATA = "not_enough_data"
    NO_INDEPENDENT_LABELS = "no_independent_labels"
    STALE = "stale"


VersionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
"""A version is a folder's name, and is read from files that others may have written: it cannot lead elsewhere."""


class StoredRecord(BaseModel):
    model_config = ConfigDict(frozen=True)


class Move(StoredRecord):
    """One change of the active version: who moved it, when, why, from what (`expected`), to what.

    None is the module's baseline, on either side. It serves before the first move, and again after a move to None.
    `judged` is false where neither the gate nor a person chose the version for its quality: an equal of a version that
    had to be withdrawn, or the end of a watch.

    `canary` names another version (`BASELINE` for none) and its share of requests, 0 to 1: as long as this is the last
    move, both serve, and the watch compares them.
    """

    sequence: int
    at: datetime
    by: str
    why: str
    expected: VersionName | None
    to: VersionName | None
    judged: bool = True
    canary: dict[VersionName, float] | None = None

    @property
    def serving(self) -> set[str]:
        """The versions that serve as long as this is the last move."""
        return serving(self.to, self.canary)


class Active(StoredRecord):
    """The version that serves, by the move of this sequence."""

    version: VersionName
    sequence: int


class Rollback(StoredRecord):
    """The versions that a move went back from, when (UTC), who made it, and why."""

    versions: tuple[VersionName, ...]
    at: datetime
    by: str
    why: str


class Pointer(StoredRecord):
    """The content of `active.json`, derived from the moves; before the first one there is no such file.

    `version` is None where somebody went back to the module's baseline. What serves is then the same as without the
    file, but the sequence tells readers that this is newer than what they know, and nothing was lost. `canary` is the
    last move's, and `rolled_back` is None where that move went back from nothing.
    """

    version: VersionName | None
    sequence: int
    canary: dict[VersionName, float] | None = None
    rolled_back: Rollback | None = None

    @property
    def active(self) -> Active | None:
        """What it names; None where the baseline serves."""
        if self.version is None:
            return None
        return Active(version=self.version, sequence=self.sequence)


def serving(to: str | None, canary: Mapping[str, float] | None) -> set[str]:
    """The stored versions among those that a move lets serve: the baseline is none, by either of its names."""
    return {version for version in (to, *(canary or ())) if version and version != BASELINE}


DemoSources = dict[str, list[str | None]]
"""By predictor: the id of the span that each of its demos came from, in the order of the demos. None is unknown."""


class SignatureState(StoredRecord):
    instructions: str


class PredictorState(StoredRecord):
    """All that a stored predictor may be: what it shows the model, and nothing that acts.

    DSPy would set any attribute that a state names, and ask the language model that it names. So whoever can write a
    program could have the application send its queries and its key elsewhere.
    """

    model_config = ConfigDict(extra="forbid")

    signature: SignatureState
    demos: list[dict[str, Any]]
    traces: list[Any] = []
    train: list[Any] = []
    fields: dict[str, Any] = {}
    lm: None = None


class Program(StoredRecord):
    """A program's envelope. Holds no time and no run id, so equal traces give equal bytes.

    `answer_formats` names the predictors that are not asked in DSPy's chat format, with the format that they are.
    `demo_sources` stands in the manifest and not among these bytes (see there).
    """

    format: Literal[1] = 1
    tenant_id: str
    module: str
    fingerprint: str
    labels: list[str]
    answer_formats: dict[str, Literal["chat", "json_schema"]] = {}
    state: dict[str, Any]
    demo_sources: DemoSources = Field(default={}, exclude=True)

    @property
    def answer_format(self) -> str:
        """In which format it is asked: `chat`, `json_schema`, or `mixed` where its predictors differ."""
        formats = {self.answer_formats.get(name, "chat") for name in self.predictors}
        return formats.pop() if len(formats) == 1 else "mixed"

    def demos(self, predictor: str) -> list[tuple[dict[str, Any], str | None]]:
        """The demos of a predictor with their sources, which are unknown if the manifest names more or fewer."""
        demos, sources = self.state[predictor]["demos"], self.demo_sources.get(predictor, [])
        return list(zip(demos, sources if len(sources) == len(demos) else [None] * len(demos), strict=True))

    def encode(self) -> bytes:
        return json.dumps(self.model_dump(), sort_keys=True, ensure_ascii=False, indent=1).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def predictors(self) -> dict[str, PredictorState]:
        """The predictors in the state, by name. What is none of ours is left out."""
        found = {}
        for name, part in self.state.items():
            with suppress(ValidationError):
                found[name] = PredictorState.model_validate(part)
        return found


class Manifest(StoredRecord):
    """How a version came to be, and what was measured of it; scores are None where nothing was.

    `demo_sources` says which span each demo of the program came from. `lm_settings` are those that every request to the
    model carried. `unread` counts the answers on the holdout that could not be graded, of the incumbent and of the
    candidate, by why.
    """

    version: VersionName
    program_sha256: str
    created_at: datetime
    run_id: str
    parent: VersionName | None
    verdict: str
    reason: str
    window_start: datetime
    window_end: datetime
    examples: dict[str, int]
    provenance: dict[str, int]
    judged_by: dict[str, int] = {}
    incumbent_score: float | None
    candidate_score: float | None
    gate: dict[str, float | int]
    optimizer: str
    tried: list[dict[str, Any]] = []
    seed: int
    lm: str
    lm_settings: dict[str, float | int | str] = {}
    answer_format: str = "chat"
    demo_sources: DemoSources = {}
    teacher_lm: str | None = None
    stand_in: bool
    lm_calls: int
    lm_tokens: int
    lm_input_tokens: int = 0
    lm_output_tokens: int = 0
    lm_cached_tokens: int = 0
    unread: dict[str, dict[str, int]] = {}
    packages: dict[str, str]


class ProgramFacts(TypedDict):
    """The fields of a manifest that follow from the program of a new version."""

    version: VersionName
    program_sha256: str
    created_at: datetime
    answer_format: str
    demo_sources: DemoSources
    packages: dict[str, str]


def program_facts(program: Program, at: datetime) -> ProgramFacts:
    """What the manifest of a new version says of its program; `at` is the time in the version's name."""
    return {
        "version": new_version_id(program, at),
        "program_sha256": program.digest,
        "created_at": datetime.now(UTC),
        "answer_format": program.answer_format,
        "demo_sources": program.demo_sources,
        "packages": {name: package_version(name) for name in ("autoopt-pipeline", "dspy")},
    }


def new_version_id(program: Program, at: datetime) -> VersionName:
    """The name of a version: a time in UTC, by which names sort, and the beginning of the program's digest."""
    return f"{at:%Y%m%dT%H%M%SZ}-{program.digest[:8]}"


class Withdrawal(StoredRecord):
    """Why a version's program is gone for good, by whom and when. Its manifest stays."""

    at: datetime
    by: str
    why: str


class Declined(StoredRecord):
    """That a person does not want a version which was proposed to them, who, when, and why."""

    at: datetime
    by: str
    why: str


class LedgerEntry(StoredRecord):
    """A risk that a finalist took, written before it was taken: one look at a holdout, or a trial on new traces.

    A trial's `holdout_digest` is that of the look which made it wait. `attempt` is the run, the same for its retries,
    with the model that answered, and `epoch` counts the judged moves before it: with each the allowance starts anew.
    """

    sequence: int
    kind: Literal["look", "trial"] = "look"
    attempt: str = ""
    epoch: int = 0
    at: datetime
    candidate_digest: str
    holdout_digest: str
    incumbent: str | None
    alpha: float


class TrialCase(StoredRecord):
    """What both programs made of one held-out trace in a trial. Holds no text of it."""

    label: str
    incumbent_score: float
    incumbent_label: str | None
    incumbent_confidence: float | None
    candidate_score: float
    candidate_label: str | None
    candidate_confidence: float | None


class TrialStep(StoredRecord):
    """One step of a waiting candidate's trial; the first one begins it.

    `incumbent` is what it is compared with (of a composed module without a version, its parts'), by the model `lm`
    and with these `labels`. `seen` are digests of the queries that count no more, `cases` are new since the step
    before, and `verdict` is `waiting` as long as the trial is open.
    """

    sequence: int
    at: datetime
    run_id: str
    version: VersionName
    incumbent: VersionName | None
    lm: str
    labels: list[str]
    alpha: float
    seen: list[str]
    cases: list[TrialCase]
    verdict: str
