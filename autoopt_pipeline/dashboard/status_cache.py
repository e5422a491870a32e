"""Looking at all tenants again and again, while somebody rollouts, so that no page has to wait for it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.status.module_status import ModuleStatus

_PAUSE_SECONDS = 5.0
"""Least time between two looks."""

_SHARE = 4
"""The pause is at least so many times as long as the look took, so that looking never burdens much."""

_UNWATCHED_SECONDS = 120.0
"""How long after the last page was asked for the looks go on."""

_FRESH_SECONDS = 60.0
"""A look as old as this is not shown before a new one has been tried."""

_PATIENCE_SECONDS = 1.0
"""How long a page waits for that."""

_FIRST_SECONDS = 5.0
"""How long a page waits where there is nothing to show yet: a little longer than for a Phoenix that does not answer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StatusSnapshot:
    """How all modules of all tenants stood at a moment (UTC)."""

    at: datetime
    standings: tuple[ModuleStatus, ...]


@dataclass(frozen=True)
class RefreshError:
    """Why something cannot be known, and since when (UTC)."""

    since: datetime
    what: str


class StatusCache:
    """The newest look, and what keeps from a newer one. `look` returns how all tenants stand; `look_at` those given."""

    def __init__(
        self,
        look: Callable[[], Sequence[ModuleStatus]],
        look_at: Callable[[str], Sequence[ModuleStatus]],
    ) -> None:
        self._look = look
        self._look_at = look_at
        self._changed = threading.Condition()
        self._latest: StatusSnapshot | None = None
        self._trouble: RefreshError | None = None
        self._rounds = 0
        self._wanted_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="looking", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def latest(self) -> tuple[StatusSnapshot | None, RefreshError | None]:
        """The newest look, and the trouble since then. Waits for a first one, and where the last one is old."""
        with self._changed:
            self._wanted_at = time.monotonic()
            self._changed.notify_all()
            stale = self._latest is None or (datetime.now(UTC) - self._latest.at).total_seconds() > _FRESH_SECONDS
            if stale and self._trouble is None:
                rounds = self._rounds
                patience = _PATIENCE_SECONDS if self._latest else _FIRST_SECONDS
                self._changed.wait_for(lambda: self._rounds > rounds or self._stopping, patience)
            return self._latest, self._trouble

    def look_again_at(self, tenant: str) -> None:
        """See one tenant anew, after something was changed. Never fails, for the change is made."""
        try:
            anew = tuple(self._look_at(tenant))
        except AutooptError as e:
            _log.warning("%s", e)
            return
        with self._changed:
            if self._latest:
                others = tuple(each for each in self._latest.standings if each.tenant_id != tenant)
                self._latest = StatusSnapshot(self._latest.at, others + anew)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._is_wanted)
                if self._stopping:
                    return
            started = time.monotonic()
            self._take()
            pause = max(_PAUSE_SECONDS, _SHARE * (time.monotonic() - started))
            with self._changed:
                self._changed.wait_for(lambda: self._stopping, pause)

    def _is_wanted(self) -> bool:
        watched = bool(self._wanted_at) and time.monotonic() - self._wanted_at < _UNWATCHED_SECONDS
        return self._stopping or watched

    def _take(self) -> None:
        at = datetime.now(UTC)
        try:
            look, what = StatusSnapshot(at, tuple(self._look())), ""
        except AutooptError as e:
            look, what = None, str(e)
        except Exception as e:  # noqa: BLE001 - drivers have errors of their own, and the next look may well succeed
            _log.exception("the look at all tenants failed")
            look, what = None, f"{type(e).__name__}: the log of the dashboard says more"
        with self._changed:
            self._rounds += 1
            if look:
                self._latest, self._trouble = look, None
            else:
                since = self._trouble.since if self._trouble else at
                self._trouble = RefreshError(since, what)
            self._changed.notify_all()
