"""Keeps answers of language models in the artifact store until a module has an outcome.

So a run that is killed or fails does not have to pay twice: the next one reuses its answers. A key is a digest of the
whole request and the model, so an answer is only reused for the same question. Answers at a temperature are kept too,
because each request has its own seed, which is the same in every attempt.
"""

import logging
import threading
import time
import uuid

from dspy.lm15 import Message, Response, TextPart, Usage
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.lm.metering import TimedAnswer, answer_text
from autoopt_pipeline.registry.version_store import VersionStore

# Answers are saved in groups of this size, so at most this many are asked for again.
SAVE_AFTER = 20

# After this time, the next answer saves a smaller group.
SAVE_SECONDS = 5.0

logger = logging.getLogger(__name__)


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None = None
    seconds: float | None = None


_CHUNK = TypeAdapter(dict[str, _Kept])


class AnswerCheckpoint:
    """The answers to one module's requests, by key. Safe to share between threads and between the models of a run.

    If the store fails, only the answers that could not be saved are lost.
    """

    def __init__(self, artifacts: VersionStore) -> None:
        self._artifacts = artifacts
        self._lock = threading.Lock()
        self._unsaved: dict[str, _Kept] = {}
        self._saved_at = time.monotonic()
        self._kept: dict[str, _Kept] = {}
        for raw in artifacts.kept_answers():
            try:
                self._kept |= _CHUNK.validate_json(raw)
            except ValidationError:
                logger.warning("%s/%s: kept answers that cannot be read are ignored", *self._place)
        self.loaded = len(self._kept)

    @property
    def _place(self) -> tuple[str, str]:
        return self._artifacts.tenant_id, self._artifacts.module

    def get(self, key: bytes) -> TimedAnswer | None:
        kept = self._kept.get(key.hex())
        if kept is None:
            return None
        response = Response(
            id="kept",
            model="kept",
            message=Message.assistant([TextPart(kept.text)]),
            finish_reason=kept.finish_reason,  # ty: ignore[invalid-argument-type] - checked by the class
            usage=Usage(kept.input_tokens, kept.output_tokens, kept.total_tokens, kept.cached_tokens),
        )
        return TimedAnswer(response, kept.seconds)

    def put(self, key: bytes, answer: TimedAnswer) -> None:
        response, usage = answer.response, answer.response.usage or Usage()
        kept = _Kept(
            text=answer_text(response),
            finish_reason=response.finish_reason,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
            cached_tokens=usage.cache_read_tokens,
            seconds=answer.seconds,
        )
        with self._lock:
            self._kept[key.hex()] = self._unsaved[key.hex()] = kept
            due = len(self._unsaved) >= SAVE_AFTER or time.monotonic() - self._saved_at >= SAVE_SECONDS
            chunk, self._unsaved = (self._unsaved, {}) if due else ({}, self._unsaved)
        if not chunk:
            return
        self._saved_at = time.monotonic()
        try:
            self._artifacts.keep_answers(uuid.uuid4().hex, _CHUNK.dump_json(chunk))
        except AutooptError as e:
            logger.warning("%s/%s: %d answers could not be kept: %s", *self._place, len(chunk), e)

    def drop(self) -> None:
        """Delete all kept answers, because the module has an outcome."""
        try:
            self._artifacts.drop_kept_answers()
        except AutooptError as e:
            logger.warning("%s/%s: kept answers could not be deleted: %s", *self._place, e)
