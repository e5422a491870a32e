"""The records that the registry stores for a module: frozen models of its files."""

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version as package_version
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.registry.program_cost import ProgramCost
from autoopt_pipeline.span_contract import BASELINE


class Verdict(StrEnum):
    PROMOTED = "promoted"
    CANARY = "canary"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    AWAITING_REVIEWS = "awaiting_reviews"
    AWAITING_APPROVAL = "awaiting_approval"
    WOULD_HAVE_PROMOTED = "would_have_promoted"
    NOT_ENOUGH_DATA = "not_enough_data"
    STALE = "stale"


# The verdicts on versions that passed the gate and are not active for another reason.
PASSED = frozenset({Verdict.AWAITING_APPROVAL, Verdict.WOULD_HAVE_PROMOTED})


# A version is also a folder's name, and may come from a file that somebody else wrote. It cannot lead elsewhere.
VersionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]


class StoredRecord(BaseModel):
    model_config = ConfigDict(frozen=True)


class Transition(StoredRecord):
    """One change of the active version or its rollout: when (UTC), by whom, why, and from which version to which.

    A version of None is the module's baseline. It serves before the first transition, and after a transition to None.

    `resets_alpha_budget` is false when neither the gate nor a person chose the version for its quality: a clean copy
    of a version that had to be withdrawn, or the end of a rollout.

    `canary` names another version (`BASELINE` for none) and its fraction of the requests, 0 to 1. While this is the
    last transition, both serve, and the rollout monitor compares them. With `proving_alpha`, the canary is not proven
    yet, and becomes active only if its outcomes prove it better at this alpha.
    """

    sequence: int
    at: datetime
    actor: str
    reason: str
    from_version: VersionName | None
    to_version: VersionName | None
    resets_alpha_budget: bool = True
    canary: dict[VersionName, float] | None = None
    proving_alpha: float | None = None

    @property
    def serving(self) -> set[str]:
        """The versions that serve while this is the last transition."""
        return serving(self.to_version, self.canary)


class Active(StoredRecord):
    """The active version, and the sequence of the transition that made it active."""

    version: VersionName
    sequence: int


class Rollback(StoredRecord):
    """The versions that a transition rolled back, when (UTC), by whom, and why."""

    versions: tuple[VersionName, ...]
    at: datetime
    actor: str
    reason: str


class Pointer(StoredRecord):
    """The content of `active.json`, derived from the transitions; before the first one there is no such file.

    `version` is None after a rollback to the module's baseline. The baseline then serves as it does without the file,
    but the sequence shows readers that this is newer than what they know. `canary` is the last transition's, and
    `rolled_back` is None when that transition was no rollback.
    """

    version: VersionName | None
    sequence: int
    canary: dict[VersionName, float] | None = None
    rolled_back: Rollback | None = None

    @property
    def active(self) -> Active | None:
        """The active version, or None if the baseline serves."""
        if self.version is None:
            return None
        return Active(version=self.version, sequence=self.sequence)


def serving(to: str | None, canary: Mapping[str, float] | None) -> set[str]:
    """Return the stored versions that serve after a transition. The baseline is not stored, so it is left out."""
    return {version for version in (to, *(canary or ())) if version and version != BASELINE}


DemoSources = dict[str, list[str | None]]
"""By predictor: the id of the span that each of its demos came from, in the order of the demos. None is unknown."""


RouterSources = dict[str, list[str]]
"""By module: the ids of the traces that its local router learnt from."""

# Longest array of a stored router, in bytes: more than that of `tenants.config.MAX_AGENTS` classes.
_LONGEST = 16 * 2**20


def _unpacked(packed: Any) -> Any:
    """Unpack an array. No more than `_LONGEST` is unpacked, so that a small file cannot fill the memory."""
    if not isinstance(packed, str):
        return packed
    unpacking = zlib.decompressobj()
    try:
        raw = unpacking.decompress(base64.b64decode(packed, validate=True), _LONGEST)
    except (binascii.Error, zlib.error) as e:
        raise ValueError(f"not a packed array: {e}") from None
    if not unpacking.eof:
        raise ValueError("a packed array is cut off or too long")
    return raw


def _packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode()


Packed = Annotated[bytes, BeforeValidator(_unpacked), PlainSerializer(_packed)]
"""An array of bytes. It is compressed and in Base64 in a file, and plain in memory, where programs share it."""


class SignatureState(StoredRecord):
    instructions: str


class PredictorState(StoredRecord):
    """The fields that a stored predictor may have: what it shows the model, and nothing else.

    DSPy sets any attribute that a state names, and asks the language model that it names. Without this restriction,
    anybody who can write a program could make the application send its queries and its key elsewhere.
    """

    model_config = ConfigDict(extra="forbid")

    signature: SignatureState
    demos: list[dict[str, Any]]
    traces: list[Any] = []
    train: list[Any] = []
    fields: dict[str, Any] = {}
    lm: None = None


class StoredEncoder(StoredRecord):
    """The sentence encoder that a local router needs: the digest of its files, and how many numbers a vector has."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dimension: int = Field(ge=1)


class StoredRouter(StoredRecord):
    """A local router (see `modules.local_router`), and the probability from which it answers without the model.

    Of `weights`, each column has one byte for each class. Columns of the `encoder` follow those of n-grams.
    """

    classes: list[str] = Field(max_length=500)
    threshold: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)
    scale: list[float]
    bias: list[float]
    rarity: Packed
    weights: Packed
    encoder: StoredEncoder | None = None


class Program(StoredRecord):
    """A stored program. It holds no time and no run id, so equal traces give equal bytes.

    `answer_formats` holds the formats of those predictors that do not use DSPy's chat format, and `lms` the models of
    those that do not ask the tenant's own. `routers` holds the local routers by module: the program's own, or those of
    its parts. `demo_sources` and `router_sources` are stored in the manifest, so they are not part of the encoded
    program.

    A program that names a model has format 2, so an application whose library is too old to ask that model refuses it.
    """

    format: Literal[1, 2] = 1
    tenant_id: str
    module: str
    fingerprint: str
    labels: list[str]
    answer_formats: dict[str, Literal["chat", "json_schema"]] = {}
    lms: dict[str, str] = {}
    routers: dict[str, StoredRouter] = {}
    state: dict[str, Any]
    demo_sources: DemoSources = Field(default={}, exclude=True)
    router_sources: RouterSources = Field(default={}, exclude=True)

    @property
    def answer_format(self) -> str:
        """The format of its answers: `chat`, `json_schema`, or `mixed` if its predictors differ."""
        formats = {self.answer_formats.get(name, "chat") for name in self.predictors}
        return formats.pop() if len(formats) == 1 else "mixed"

    @property
    def named_lms(self) -> list[str]:
        """The models that its predictors name; empty if all ask the tenant's own."""
        return sorted(set(self.lms.values()))

    def demos(self, predictor: str) -> list[tuple[dict[str, Any], str | None]]:
        """The demos of a predictor with their sources, which are unknown if the manifest names more or fewer."""
        demos, sources = self.state[predictor]["demos"], self.demo_sources.get(predictor, [])
        return list(zip(demos, sources if len(sources) == len(demos) else [None] * len(demos), strict=True))

    def encode(self) -> bytes:
        # A program that names no model has the same bytes as before programs could.
        fields = self.model_dump(exclude=None if self.lms else {"lms"})
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, indent=1).encode()

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def predictors(self) -> dict[str, PredictorState]:
        """The predictors in the state, by name. Anything else in the state is left out."""
        predictors = {}
        for name, part in self.state.items():
            with suppress(ValidationError):
                predictors[name] = PredictorState.model_validate(part)
        return predictors


def check_models(stored: Program, models: Collection[str]) -> None:
    """Raise `InvalidArtifact` if a program names a language model that is not among `models`."""
    if missing := [name for name in stored.named_lms if name not in models]:
        raise InvalidArtifact(
            f"{stored.tenant_id}/{stored.module}: the program asks {', '.join(missing)}, which is not given here",
            "give it: in the tenant's candidate_lms for runs, in Serving(lms={...}) for an application; or activate "
            "another version",
        )


class Manifest(StoredRecord):
    """How a version was made, and its measurements. Scores are None if nothing was measured.

    `demo_sources` names the span that each demo of the program came from, `router_sources` the traces of its local
    routers. `lm` is the model that the program asked, and `named_lms` are those that it names, which an application has
    to give; empty if it asks the tenant's own. `lm_settings` were sent with every request to `lm`. `unread` counts the
    answers on the holdout that could not be scored, by program (incumbent, candidate) and reason, and `costs` has what
    a decision of each costs. `lm_dollars` is None if it is unknown.
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
    named_lms: list[str] = []
    demo_sources: DemoSources = {}
    router_sources: RouterSources = {}
    teacher_lm: str | None = None
    judge_lm: str | None = None
    stand_in: bool
    lm_calls: int
    lm_tokens: int
    lm_input_tokens: int = 0
    lm_output_tokens: int = 0
    lm_cached_tokens: int = 0
    lm_dollars: float | None = None
    costs: dict[str, ProgramCost] = {}
    unread: dict[str, dict[str, int]] = {}
    packages: dict[str, str]


class ProgramFacts(TypedDict):
    """The fields of a manifest that follow from the program of a new version."""

    version: VersionName
    program_sha256: str
    created_at: datetime
    answer_format: str
    named_lms: list[str]
    demo_sources: DemoSources
    router_sources: RouterSources
    packages: dict[str, str]


def program_facts(program: Program, at: datetime) -> ProgramFacts:
    """Return the manifest's facts about a new version's program. `at` is the time in the version's name."""
    return {
        "version": new_version_id(program, at),
        "program_sha256": program.digest,
        "created_at": datetime.now(UTC),
        "answer_format": program.answer_format,
        "named_lms": program.named_lms,
        "demo_sources": program.demo_sources,
        "router_sources": program.router_sources,
        "packages": {name: package_version(name) for name in ("autoopt-pipeline", "dspy")},
    }


def new_version_id(program: Program, at: datetime) -> VersionName:
    """Return the name of a version: a time in UTC, by which names sort, and the start of the program's digest."""
    return f"{at:%Y%m%dT%H%M%SZ}-{program.digest[:8]}"


VERSION_IN_TEXT = re.compile(r"\b[0-9]{8}T[0-9]{6}Z-([0-9a-f]{8})\b")
"""The name of a version as `new_version_id` makes it; the group is its short name."""


_MADE = re.compile(r"[0-9]{8}T[0-9]{6}Z(?=-|$)")


def time_of_version(version: str) -> datetime | None:
    """Return the time (UTC) in a version's name, or None if it has none."""
    made = _MADE.match(version)
    try:
        return datetime.fromisoformat(made[0]) if made else None
    except ValueError:
        return None


class Withdrawal(StoredRecord):
    """Who permanently deleted a version's program, when (UTC) and why. Its manifest stays."""

    at: datetime
    actor: str
    reason: str


class Declined(StoredRecord):
    """Who declined a version that awaited approval, when (UTC) and why."""

    at: datetime
    actor: str
    reason: str


class LedgerEntry(StoredRecord):
    """The alpha that the test of one finalist may spend.

    It is written before both programs are compared. `attempt` is the run (the same for its retries) with the model that
    answered, and `epoch` counts the earlier transitions that reset the alpha budget.
    """

    sequence: int
    attempt: str = ""
    epoch: int = 0
    at: datetime
    candidate_digest: str
    holdout_digest: str
    incumbent: str | None
    alpha: float


class StoredJudged(StoredRecord):
    """A judge's word on a case (see `evaluation.cases.Judged`)."""

    difference: float
    share: float
    asked: bool


class StoredCase(StoredRecord):
    """The scores of both programs on one drawn trace. It holds no text of the trace."""

    label: str
    incumbent_score: float
    incumbent_label: str | None
    incumbent_confidence: float | None
    candidate_score: float
    candidate_label: str | None
    candidate_confidence: float | None
    judged: StoredJudged | None = None


class StoredBatch(StoredRecord):
    """A batch of drawn traces with a decision (see `evaluation.sequential_test.Batch`)."""

    reviewed: list[StoredCase]
    disagreements: int
    known: int
    agreed: list[StoredCase]
    presumed: list[StoredCase]


class StoredAnswer(StoredRecord):
    """A program's answer to a drawn trace: its output fields, or None if it was invalid."""

    values: dict[str, Any] | None
    confidence: float | None


class DrawnTrace(StoredRecord):
    """A drawn trace with both programs' answers, and whether they are alike. Its text stays in Phoenix.

    `judged` is the case as a judge sees it, if one was asked.
    """

    span_id: str
    trace_id: str
    time: datetime
    alike: bool
    incumbent: StoredAnswer
    candidate: StoredAnswer
    judged: StoredCase | None = None

    @property
    def is_asked(self) -> bool:
        """Whether people are asked about it."""
        return self.judged is None or self.judged.judged is None or self.judged.judged.asked


class SequentialTestStep(StoredRecord):
    """One step of the sequential test of a candidate; the first one `begins` it.

    The test compares the candidate with `incumbent` (for a composed module without a version, the programs of its
    parts), using the model `lm` and these `labels`. `draws` says which traces are drawn: those that were reviewed
    before, or `all`. `seen` holds digests of the queries that cannot be drawn any more. `max_loss` is set for a cheaper
    candidate, which may be promoted if it is not worse by more than that.

    A step has the `drawn` traces that await reviews, in the order of review, the first `known` disagreements with a
    label; or the `batch` with the decision on it. `judge` is the language model that judged disagreements. `verdict` is
    `awaiting_reviews` or `inconclusive` while the test is open.
    """

    sequence: int
    at: datetime
    run_id: str
    version: VersionName
    incumbent: str | None
    lm: str
    labels: list[str]
    alpha: float
    max_loss: float | None = None
    begins: bool
    draws: Literal["reviewed", "all"]
    seen: list[str]
    drawn: list[DrawnTrace] = []
    known: int = 0
    judge: str | None = None
    batch: StoredBatch | None = None
    verdict: str
