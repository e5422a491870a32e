"""What a module's model is asked again and again, and what came of it.

    {root}/{tenant}/{module}/replays/{version}.json       requests with the answers of a version, or of the baseline
    {root}/_quality/replays/{tenant}.{module}.json        the last result, until the quality sensor has read it

The second file has no text. A run leaves it to the quality sensor, which alone writes what is known of live quality.
"""

from collections.abc import Sequence

from pydantic import AwareDatetime, NonNegativeInt, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredAnswer, StoredRecord, VersionName
from autoopt_pipeline.tenant_id import safe_name

_RESULTS = "_quality/replays"  # safe names begin with a letter or a digit


class ReplayExample(StoredRecord):
    """A request as it was asked (redacted), and the answer to it."""

    span_id: str
    trace_id: str
    inputs: dict[str, str]
    answer: StoredAnswer


class ReplaySet(StoredRecord):
    """Requests that nothing was learnt from, with the answers that `lm` gave `answered_at` (UTC).

    `version` is None for the baseline, whose program is told by its digest, `program`. At `same_at` the model still
    answered all of them alike.
    """

    version: VersionName | None
    program: str | None
    lm: str
    answered_at: AwareDatetime
    same_at: AwareDatetime
    examples: tuple[ReplayExample, ...]


class ModelReplay(StoredRecord):
    """The result of asking a model again `at` a moment what it was `asked` before, at `answered_at` (UTC).

    `changed` answers are others than before. Their requests were asked once more: `repeated` of them got the new answer
    again, and `returned` the earlier one. `p` is the chance of so many if the model answers as before. Until `same_at`
    nothing had changed. `lm` is the model now, `lm_before` the one that gave the earlier answers.
    """

    tenant_id: str
    module: str
    version: VersionName | None
    at: AwareDatetime
    answered_at: AwareDatetime
    same_at: AwareDatetime
    lm: str
    lm_before: str
    asked: NonNegativeInt
    changed: NonNegativeInt
    repeated: NonNegativeInt
    returned: NonNegativeInt
    p: float

    @property
    def differing(self) -> int:
        """Answers that are others, without those that went back to what they were."""
        return self.changed - self.returned

    def __str__(self) -> str:
        before = f"{self.answered_at:%Y-%m-%d}"
        if self.lm != self.lm_before:
            before += f", when it was {self.lm_before}"
        if not self.differing:
            return f"{self.lm} answers all {self.asked} held-out requests as on {before}"
        return f"{self.lm} answers {self.differing} of {self.asked} held-out requests differently than on {before}"


def report_replay(files: ObjectStore, result: ModelReplay) -> None:
    """Leave a result for the quality sensor. It replaces an earlier one that was not read yet."""
    files.replace(_path(result), result.model_dump_json().encode())


def reported_replays(files: ObjectStore) -> Sequence[ModelReplay]:
    """The results of all tenants that were not read yet. Unreadable ones are left out."""
    contents = files.read_many([f"{_RESULTS}/{name}" for name in files.names(_RESULTS)])
    found = ((path, _parse(raw)) for path, raw in contents.items() if isinstance(raw, bytes))
    return [result for path, result in found if result and _path(result) == path]


def drop_replay(files: ObjectStore, result: ModelReplay) -> None:
    """Remove a result that was read, unless a newer one has come meanwhile."""
    raw = files.read(_path(result))
    if raw is not None and _parse(raw) == result:
        files.delete(_path(result))


def _path(result: ModelReplay) -> str:
    return f"{_RESULTS}/{safe_name(result.tenant_id)}.{result.module}.json"


def _parse(raw: bytes) -> ModelReplay | None:
    try:
        return ModelReplay.model_validate_json(raw)
    except ValidationError:
        return None
