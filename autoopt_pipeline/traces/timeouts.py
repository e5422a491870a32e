"""Time limits for Phoenix: for runs from the settings, for people a few seconds."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from autoopt_pipeline.errors import PhoenixUnavailable

# Wait of a person for one answer. Runs may keep a healthy Phoenix busy for one or two seconds.
PEOPLE_SECONDS = 4.0

_TELL_AFTER_SECONDS = 1.0

# Interval of the checks whether a silent server answers again.
_PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class Patience:
    """Limit for one answer in `seconds`; None means the settings' limit. `tell` receives a line during a wait."""

    seconds: float | None = None
    tell: Callable[[str], None] | None = None

    @contextmanager
    def waiting(self, line: str) -> Generator[None, None, None]:
        """Pass the line to `tell` if the body takes longer than a second."""
        if self.tell is None:
            yield
            return
        timer = threading.Timer(_TELL_AFTER_SECONDS, self.tell, [line])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


# The patience of a run.
AS_CONFIGURED = Patience()


class Silence:
    """Remembers that a server does not answer, so that only the first caller has to wait.

    From `noticed` on, `check` fails at once. A thread calls `answers` until the server is back.
    """

    def __init__(self, answers: Callable[[], bool]) -> None:
        self._answers = answers
        self._error: PhoenixUnavailable | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Raise `PhoenixUnavailable` while the server does not answer."""
        if error := self._error:
            raise PhoenixUnavailable(error.what, error.remedy)

    def noticed(self, error: PhoenixUnavailable) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
                threading.Thread(target=self._wait_for_answer, name="silent-phoenix", daemon=True).start()

    def _wait_for_answer(self) -> None:
        # Not at once, because a server that is only slow would make each caller wait in turn.
        time.sleep(_PROBE_SECONDS)
        while not self._answers():
            time.sleep(_PROBE_SECONDS)
        self._error = None
