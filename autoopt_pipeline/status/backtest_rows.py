"""A backtest as rows for people: commands and pages show the same."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, zip_longest

from autoopt_pipeline.registry.backtests import Backtest, Night, PlayedNights
from autoopt_pipeline.registry.program_cost import dollars_text
from autoopt_pipeline.span_contract import BASELINE

OWN_SETTINGS = "own settings"


@dataclass(frozen=True)
class NightsRow:
    """One night, or several in a row with the same result. `last` has the last one of each variant.

    A variant that ended before has None.
    """

    first_at: datetime
    last_at: datetime
    last: tuple[Night | None, ...]

    @property
    def dates(self) -> str:
        first, last = f"{self.first_at:%Y-%m-%d}", f"{self.last_at:%Y-%m-%d}"
        return first if first == last else f"{first} to {last}"


def variants_of(backtest: Backtest) -> dict[str, PlayedNights]:
    """Return what was played, by the settings in words."""
    if backtest.other is None:
        return {OWN_SETTINGS: backtest.own}
    changes = ", ".join(f"{name}={value}" for name, value in backtest.changes.items())
    return {OWN_SETTINGS: backtest.own, f"with {changes}": backtest.other}


def rows_of(backtest: Backtest) -> Iterator[NightsRow]:
    """Yield the nights, oldest first, with all variants side by side."""
    nights = zip_longest(*(played.nights for played in variants_of(backtest).values()))
    for _, group in groupby(nights, key=lambda row: tuple(map(_told, row))):
        stretch = list(group)
        yield NightsRow(_moment(stretch[0]), _moment(stretch[-1]), stretch[-1])


def summary_of(played: PlayedNights) -> dict[str, str]:
    """Return the totals in words, by name."""
    return {
        "starts from": played.starts_from or BASELINE,
        "runs": str(len(played.runs)),
        "promoted": ", ".join(f"{night.version} on {night.at:%Y-%m-%d}" for night in played.promotions) or "nothing",
        "reviews asked for": str(played.reviews_asked),
        "reviews used": str(played.reviews_used),
        "LM calls": f"{played.lm_calls:,}",
        "tokens": f"{played.lm_tokens:,}",
        "dollars": dollars_text(played.lm_dollars),
        "language models": ", ".join(played.lm) + (" (not a language model)" if played.stand_in else ""),
    }


def _told(night: Night | None) -> object:
    """What a row says of a night, apart from its date."""
    if night is None or not night.ran:
        return night and night.decision
    return night.verdict, night.reason, night.failed, night.version, night.reviews_asked, night.lm_calls


def _moment(nights: Sequence[Night | None]) -> datetime:
    return next(night.at for night in nights if night)
