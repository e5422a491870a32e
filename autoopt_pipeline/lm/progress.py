"""Progress of an optimization: its current long phase, and what it has cost so far."""

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

# Interval of the reports.
REPORT_SECONDS = 1.0

# Shorter phases are not reported.
QUIET_SECONDS = 3.0

_SHORTEST = 1e-3
# Beyond any realistic value, and small enough that the time left fits into a timedelta.
_MOST, _MOST_EXAMPLES, _LONGEST = 10**12, 10**6, 1e7


class Progress(Strict):
    """One phase of an optimization, `seconds` after it started.

    `done` of `total` examples are answered. If the amount of work is unknown, `total` is None and `done` counts calls.
    `calls` and `tokens` are the usage of the run's language models, over all phases.
    """

    phase: str = Field(max_length=300)
    done: int = Field(ge=0, le=_MOST)
    total: int | None = Field(ge=0, le=_MOST_EXAMPLES)
    calls: int = Field(ge=0, le=_MOST)
    tokens: int = Field(ge=0, le=_MOST)
    seconds: float = Field(ge=0, le=_LONGEST, allow_inf_nan=False)

    @property
    def rate(self) -> float:
        """Examples, or calls, per second."""
        return self.done / max(self.seconds, _SHORTEST)

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left at that rate. None before anything is done, and if the amount of work is unknown."""
        if not self.done or self.total is None:
            return None
        return max(0, self.total - self.done) * self.seconds / self.done

    @property
    def count(self) -> str:
        """Text for what is done."""
        return f"{self.done:,} calls so far" if self.total is None else f"{self.done:,} of {self.total:,}"

    @property
    def speed(self) -> str:
        """Text for the rate: `1.2 a second`, or per minute if it is less than one."""
        return f"{self.rate:,.1f} a second" if self.rate >= 1 else f"{60 * self.rate:,.1f} a minute"

    @property
    def cost(self) -> str:
        """Text for calls, tokens, rate and time left."""
        usage = f"{self.calls:,} calls and {self.tokens:,} tokens in all, {self.speed}"
        left = self.seconds_left
        return usage if left is None else f"{usage}, {duration(timedelta(seconds=left))} left"

    def __str__(self) -> str:
        return f"{self.phase}: {self.count} after {duration(timedelta(seconds=self.seconds))}; {self.cost}"

    def as_dict(self) -> dict[str, Any]:
        """Fields for JSON, with the rate and the seconds left."""
        return self.model_dump() | {"rate": self.rate, "seconds_left": self.seconds_left}


# Receives the current phase at most once a second, and None at its end. It has its own thread, so it may be slow. If it
# raises, the reports end and the optimization continues.
ProgressCallback = Callable[[Progress | None], None]


class PhaseTracker:
    """Tracks the current phase of an optimization. Costs nothing until somebody reads `now`."""

    def __init__(self, meter: "Meter") -> None:
        self._meter = meter
        self._phase: _Phase | None = None

    @contextmanager
    def phase(self, name: str, total: int | None = None) -> Generator[Callable[[], None], None, None]:
        """Track the body as a phase. Yields a function that any thread calls after each of the `total` examples.

        Without a total, calls of language models are counted.
        """
        phase = self._phase = _Phase(name, total, self._meter.calls)
        try:
            yield phase.step
        finally:
            self._phase = None

    def now(self) -> Progress | None:
        """Return the current phase, if it has lasted some seconds."""
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
    """Yield a tracker and report its phases meanwhile. Without `on_progress` there are no reports."""
    tracker = PhaseTracker(meter)
    if on_progress is None:
        yield tracker
        return
    ended = threading.Event()

    def report() -> None:
        reported = False
        while not ended.wait(REPORT_SECONDS):
            progress = tracker.now()
            if progress or reported:
                on_progress(progress)
            reported = progress is not None
        if reported:
            on_progress(None)

    reporter = threading.Thread(target=report, name="progress", daemon=True)
    reporter.start()
    try:
        yield tracker
    finally:
        ended.set()
        reporter.join()
