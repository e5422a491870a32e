"""Refreshes the status of all tenants in the background while a page is open, so that no page waits for it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from autoopt_pipeline.dashboard.sensors import Sensor
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.status.module_status import ModuleStatus
from autoopt_pipeline.status.week import WeekEvents

_PAUSE_SECONDS = 5.0
"""The shortest pause between two refreshes."""

_SHARE = 4
"""The pause lasts at least this many times as long as the refresh, which limits the load."""

_UNWATCHED_SECONDS = 120.0
"""How long refreshes continue after the last request for a page."""

_FRESH_SECONDS = 60.0
"""The age at which a page waits for a new snapshot before it shows the old one."""

_PATIENCE_SECONDS = 1.0
"""How long a page waits for a new snapshot."""

_FIRST_SECONDS = 5.0
"""How long a page waits for the first snapshot: a little longer than a client waits for Phoenix."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StatusSnapshot:
    """The status of all modules of all tenants at a moment (UTC), and what happened in the week before.

    The first snapshot of many tenants has only some of them, and not yet the week and the sensors; `tenants_left` are
    still being read.
    """

    at: datetime
    standings: tuple[ModuleStatus, ...]
    week: WeekEvents | None = None
    sensors: tuple[Sensor, ...] = ()
    tenants_left: int = 0


@dataclass(frozen=True)
class RefreshError:
    """Why a refresh fails, and since when (UTC)."""

    since: datetime
    what: str


class StatusCache:
    """The newest snapshot, and the error that prevents a newer one.

    `read_all` reads the status of all tenants, and `read_tenant` that of one. `read_first` reads some tenants within a
    second, for the first page; None where there are not more than these.
    """

    def __init__(
        self,
        read_first: Callable[[], StatusSnapshot | None],
        read_all: Callable[[], StatusSnapshot],
        read_tenant: Callable[[str], Sequence[ModuleStatus]],
    ) -> None:
        self._read_first = read_first
        self._read_all = read_all
        self._read_tenant = read_tenant
        self._changed = threading.Condition()
        self._latest: StatusSnapshot | None = None
        self._trouble: RefreshError | None = None
        self._rounds = 0
        self._wanted_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def latest(self) -> tuple[StatusSnapshot | None, RefreshError | None]:
        """The newest snapshot and the error since then. Waits for the first snapshot, and when the newest is old."""
        with self._changed:
            self._wanted_at = time.monotonic()
            self._changed.notify_all()
            stale = self._latest is None or (datetime.now(UTC) - self._latest.at).total_seconds() > _FRESH_SECONDS
            if stale and self._trouble is None:
                rounds = self._rounds
                patience = _PATIENCE_SECONDS if self._latest else _FIRST_SECONDS
                self._changed.wait_for(lambda: self._rounds > rounds or self._stopping, patience)
            return self._latest, self._trouble

    def refresh_tenant(self, tenant: str) -> None:
        """Refresh one tenant after a change. It never raises, because the change is already made."""
        try:
            anew = tuple(self._read_tenant(tenant))
        except AutooptError as e:
            _log.warning("%s", e)
            return
        with self._changed:
            if self._latest:
                others = tuple(status for status in self._latest.standings if status.tenant_id != tenant)
                self._latest = replace(self._latest, standings=others + anew)

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
        if self._latest is None and (first := self._attempt(self._read_first)):
            self._publish(first)
        if everything := self._attempt(self._read_all):
            self._publish(everything)

    def _attempt(self, read: Callable[[], StatusSnapshot | None]) -> StatusSnapshot | None:
        """Read, and keep the error of what cannot be read for the pages."""
        at = datetime.now(UTC)
        try:
            return read()
        except AutooptError as e:
            what = str(e)
        except Exception as e:  # noqa: BLE001 - drivers have errors of their own, and the next refresh may well succeed
            _log.exception("the refresh of all tenants failed")
            what = f"{type(e).__name__}: the log of the dashboard says more"
        with self._changed:
            self._rounds += 1
            self._trouble = RefreshError(self._trouble.since if self._trouble else at, what)
            self._changed.notify_all()
        return None

    def _publish(self, snapshot: StatusSnapshot) -> None:
        with self._changed:
            self._rounds += 1
            self._latest, self._trouble = snapshot, None
            self._changed.notify_all()
