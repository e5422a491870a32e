"""How far an optimization is, for whoever waits for it: the phase that takes long, and what it has cost so far."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import Field

from autoopt_pipeline.text import duration
from autoopt_pipeline.validation import Strict

if TYPE_CHECKING:
    from autoopt_pipeline.lm.metering import Meter

REPORT_SECONDS = 1.0
"""Time between two reports."""

QUIET_SECONDS = 3.0
"""A phase that ends sooner is not reported."""

_SHORTEST = 1e-3
# Far beyond what can be, and near enough that what follows from them is a number of days that Python has a type for.
_MOST, _MOST_EXAMPLES, _LONGEST = 10**12, 10**6, 1e7


class Progress(Strict):
    """One phase of an optimization, `seconds` after it began.

    `done` of `total` examples are answered; `total` is None where nobody knows how much there is to do, and then `done`
    counts calls. `calls` and `tokens` are what the run's language models have taken so far, in all phases.
    """

    phase: str = Field(max_length=300)
    done: int = Field(ge=0, le=_MOST)
    total: int | None = Field(ge=0, le=_MOST_EXAMPLES)
    calls: int = Field(ge=0, le=_MOST)
    tokens: int = Field(ge=0, le=_MOST)
    seconds: float = Field(ge=0, le=_LONGEST, allow_inf_nan=False)

    @property
    def rate(self) -> float:
        """What is done in a second."""
        return self.done / max(self.seconds, _SHORTEST)

    @property
    def seconds_left(self) -> float | None:
        """At that rate. None before anything is done, and where nobody knows how much there is to do."""
        if not self.done or self.total is None:
            return None
        return max(0, self.total - self.done) * self.seconds / self.done

    @property
    def count(self) -> str:
        """What is done, in words."""
        return f"{self.done:,} calls so far" if self.total is None else f"{self.done:,} of {self.total:,}"

    @property
    def speed(self) -> str:
        """The rate, in words: `1.2 a second`, or where that is less than one, so many a minute."""
        return f"{self.rate:,.1f} a second" if self.rate >= 1 else f"{60 * self.rate:,.1f} a minute"

    @property
    def cost(self) -> str:
        """Calls, tokens, rate and time left, in words."""
        told = f"{self.calls:,} calls and {self.tokens:,} tokens in all, {self.speed}"
        left = self.seconds_left
        return told if left is None else f"{told}, {duration(timedelta(seconds=left))} left"

    def __str__(self) -> str:
        return f"{self.phase}: {self.count} after {duration(timedelta(seconds=self.seconds))}; {self.cost}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the rate and the seconds left."""
        return self.model_dump() | {"rate": self.rate, "seconds_left": self.seconds_left}


ProgressCallback = Callable[[Progress | None], None]
"""Is told of the phase that is under way at most once a second, and None when it has ended. Is called in a thread of
its own, so that it may be slow; where it raises, the reports end and the optimization goes on."""


class PhaseTracker:
    """Which phase an optimization is in. Costs nothing where nobody asks `now`."""

    def __init__(self, meter: "Meter") -> None:
        self._meter = meter
        self._phase: _Phase | None = None

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Generator[Callable[[], None], None, None]:
        """What happens inside is a phase. Gives what is to be called after each of its `total` examples, by any thread.

        Without a total the calls of language models are counted.
        """
        phase = self._phase = _Phase(name, total, self._meter.calls)
        try:
            yield phase.step
        finally:
            self._phase = None

    def now(self) -> Progress | None:
        """The phase that is under way, if it has been for some seconds."""
        phase = self._phase
        if phase is None or (seconds := time.monotonic() - phase.began) < QUIET_SECONDS:
            return None
        return Progress(
            phase=phase.name[:300],
            done=self._meter.calls - phase.calls_before if phase.total is None else phase.done,
            total=phase.total,
            calls=self._meter.calls,
            tokens=self._meter.tokens,
            seconds=round(seconds, 1),
        )


class _Phase:
    def __init__(self, name: str, total: int | None, calls_before: int) -> None:
        self.name, self.total, self.calls_before = name, total, calls_before
        self.began = time.monotonic()
        self.done = 0
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self.done += 1


@contextmanager
def tracking(meter: "Meter", on_progress: ProgressCallback | None) -> Generator[PhaseTracker, None, None]:
    """A tracker whose phases are reported meanwhile. Without `on_progress`, nobody is told."""
    tracker = PhaseTracker(meter)
    if on_progress is None:
        yield tracker
        return
    ended = threading.Event()

    def report() -> None:
        told = False
        while not ended.wait(REPORT_SECONDS):
            progress = tracker.now()
            if progress or told:
                on_progress(progress)
            told = progress is not None
        if told:
            on_progress(None)

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield tracker
    finally:
        ended.set()
        reporter.join()
