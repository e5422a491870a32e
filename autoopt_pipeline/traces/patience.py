"""How long whoever asks Phoenix waits for it: a run as long as it takes, a person a few seconds, and told of it."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from autoopt_pipeline.errors import PhoenixUnavailable

_PROBE_SECONDS = 2.0
"""Time between two questions whether a silent server answers again."""

_UNASKED_SECONDS = 60.0
"""When nobody has asked for so long, a silent server is left alone; who asks next finds out anew."""

_TELL_AFTER_SECONDS = 1.0


@dataclass(frozen=True)
class Patience:
    """`seconds` bounds each answer; None: whatever the settings say. `tell` gets one line when something is slow."""

    seconds: float | None = None
    tell: Callable[[str], None] | None = None

    @contextmanager
    def waiting(self, line: str) -> Generator[None, None, None]:
        """Tell the line if what happens inside takes its time."""
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


AS_CONFIGURED = Patience()
"""A run's."""

PEOPLE_SECONDS = 4.0
"""A person's, for one answer."""


@dataclass
class Silence:
    """A server that has stopped answering, so that not everybody who asks has to wait until that is found out anew.

    Once it is `noticed`, `check` fails at once; a thread of its own asks until the server answers again.
    """

    answers: Callable[[], bool]
    _error: PhoenixUnavailable | None = None
    _asked_at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> None:
        """Raise `PhoenixUnavailable` while the server is known to be silent."""
        error, self._asked_at = self._error, time.monotonic()
        if error:
            raise PhoenixUnavailable(error.what, error.remedy)

    def noticed(self, error: PhoenixUnavailable) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
                threading.Thread(target=self._wait_for_answer, name="silent-phoenix", daemon=True).start()

    def _wait_for_answer(self) -> None:
        # Not at once: a server that is only slow would keep everybody waiting in turn.
        time.sleep(_PROBE_SECONDS)
        while not self.answers() and time.monotonic() - self._asked_at < _UNASKED_SECONDS:
            time.sleep(_PROBE_SECONDS)
        with self._lock:
            self._error = None
