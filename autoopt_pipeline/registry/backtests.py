"""Stored backtests: what the loop would have done with a module's past traces.

    {root}/{tenant}/{module}/backtests/{time}.json    one backtest; the newest ten are kept

A backtest is a result for people to read. Nothing that serves or promotes depends on it.
"""

from collections.abc import Iterator
from datetime import datetime

from pydantic import Field, ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredRecord, Verdict
from autoopt_pipeline.tenant_id import safe_name

KEPT = 10

MOST_NIGHTS = 366

# Longest reason of a night, in characters.
MOST_TEXT = 2000


class Night(StoredRecord):
    """One moment at which the conditions were checked, and what the run found if there was one. Scores are 0 to 1.

    `decision` is a `scheduling.conditions.Reason` and `detail` its reason in words. Without a run, `verdict` is None;
    `failed` says why a run had no verdict. `traces` is how many decisions the run read. `reviews_used` are the reviews
    that the verdict rests on, `reviews_asked` those that people would have been asked for that night, and
    `reviews_needed` how many of them could decide at the soonest. `lm_dollars` is None if a price is unknown.
    """

    at: datetime
    decision: str
    detail: str = Field(max_length=MOST_TEXT)
    verdict: str | None = None
    reason: str = Field("", max_length=MOST_TEXT)
    failed: str = Field("", max_length=MOST_TEXT)
    incumbent_version: str | None = None
    version: str | None = None
    optimizer: str | None = None
    incumbent_score: float | None = None
    candidate_score: float | None = None
    traces: int = 0
    reviews_used: int = 0
    reviews_asked: int = 0
    reviews_needed: int = 0
    lm_calls: int = 0
    lm_tokens: int = 0
    lm_dollars: float | None = 0.0

    @property
    def ran(self) -> bool:
        """Whether there was a run."""
        return self.verdict is not None or bool(self.failed)

    @property
    def promoted(self) -> bool:
        return self.verdict == Verdict.PROMOTED


class PlayedNights(StoredRecord):
    """The nights under one set of settings, oldest first. `lm` names the models, the tenant's own first.

    `starts_from` is the version that was active at the start; None for the baseline.
    """

    lm: tuple[str, ...]
    stand_in: bool
    starts_from: str | None
    nights: tuple[Night, ...] = Field(max_length=MOST_NIGHTS)

    def followed_by(self, night: Night) -> "PlayedNights":
        return self.model_copy(update={"nights": (*self.nights, night)})

    @property
    def runs(self) -> list[Night]:
        return [night for night in self.nights if night.ran]

    @property
    def promotions(self) -> list[Night]:
        return [night for night in self.nights if night.promoted]

    @property
    def lm_calls(self) -> int:
        return sum(night.lm_calls for night in self.nights)

    @property
    def lm_tokens(self) -> int:
        return sum(night.lm_tokens for night in self.nights)

    @property
    def lm_dollars(self) -> float | None:
        """None if the price of a call is unknown."""
        dollars = [night.lm_dollars for night in self.nights if night.lm_dollars is not None]
        return sum(dollars) if len(dollars) == len(self.nights) else None

    @property
    def reviews_asked(self) -> int:
        """The reviews that people would have been asked for."""
        return sum(night.reviews_asked for night in self.nights)

    @property
    def reviews_used(self) -> int:
        """The reviews that verdicts rest on. Those of one candidate are counted once."""
        by_version = {night.version: night.reviews_used for night in self.nights if night.version}
        return sum(by_version.values())


class Backtest(StoredRecord):
    """A backtest of one module over the nights in (start, end], UTC, made `at`.

    `traces` and `reviews` are what Phoenix had of the period, with the lookback before it. `own` is played with the
    tenant's settings, and `other` with the settings in `changes` on top, if any were given. `ended` says why it ended
    before the last night; "" if it did not.
    """

    at: datetime
    tenant_id: str
    module: str
    start: datetime
    end: datetime
    traces: int
    reviews: int
    max_calls: int
    own: PlayedNights
    changes: dict[str, str] = Field(default_factory=dict)
    other: PlayedNights | None = None
    ended: str = ""


def save_backtest(files: ObjectStore, backtest: Backtest) -> None:
    """Store a backtest, and delete the oldest beyond `KEPT`."""
    folder = _folder(backtest.tenant_id, backtest.module)
    files.replace(f"{folder}/{backtest.at:%Y%m%dT%H%M%S%fZ}.json", backtest.model_dump_json(indent=1).encode())
    for name in files.names(folder)[:-KEPT]:
        files.delete(f"{folder}/{name}")


def stored_backtests(files: ObjectStore, tenant_id: str, module: str) -> Iterator[Backtest]:
    """Yield the backtests of a module, newest first. Unreadable ones are left out."""
    folder = _folder(tenant_id, module)
    for name in reversed(files.names(folder)[-KEPT:]):
        raw = files.read(f"{folder}/{name}")
        try:
            backtest = Backtest.model_validate_json(raw) if raw else None
        except ValidationError:
            continue
        if backtest:
            yield backtest


def _folder(tenant_id: str, module: str) -> str:
    return f"{safe_name(tenant_id)}/{module}/backtests"
