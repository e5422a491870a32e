"""Cache of the programs in service: loaded at the first request, refreshed while in use, limited in number.

A request only waits for its tenant's first load. One daemon thread reads all due pointers at once. If a pointer or
program is unreadable or rejected, the last good program continues to serve, and `problems` shows the reason.
"""

import asyncio
import logging
import random
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from autoopt_pipeline.errors import ArtifactStoreUnavailable, AutooptError, InvalidArtifact
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Pointer
from autoopt_pipeline.registry.version_store import read_pointers
from autoopt_pipeline.secrets import scrub_logs_of
from autoopt_pipeline.serving._answers import BuildSettings, Loaded, Problem, Status, version_name
from autoopt_pipeline.serving._fork import begin_in_every_process
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.urls import without_secrets

if TYPE_CHECKING:
    from autoopt_pipeline.serving._snapshot import Snapshot

logger = logging.getLogger(__name__)
scrub_logs_of(__name__)

# Refreshes after which a module without requests is dropped. The next request loads it again.
IDLE_REFRESHES = 20

# Refreshes of due entries per interval, which spread the reads.
_TICKS = 10

# Fraction of the interval by which a refresh varies, so that processes do not read in step.
_JITTER = 0.2

# Longest wait between retries, in refresh intervals, while the store fails or a rejected version stays active.
_LONGEST_BACK_OFF = 10

# Concurrent first loads. They mostly wait for the store.
_LOADERS = 8


@dataclass(eq=False)
class _Entry:
    """One tenant's module. `snapshot` serves; `seen` are the pointers read last, whether or not they serve."""

    tenant_id: str
    spec: ModuleSpec
    snapshot: "Snapshot | None" = None
    seen: Mapping[str, Pointer | None] | None = None
    problem: Problem | None = None
    failures: int = 0
    used: float = field(default_factory=time.monotonic)
    due: float = float("inf")
    retry: float = float("inf")
    read_at: datetime | None = None
    first_load: Future[None] = field(default_factory=Future)

    @property
    def name(self) -> str:
        return f"{self.tenant_id}/{self.spec.name}"

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules whose pointers are followed: its own, and the parts of its baseline."""
        return (self.spec.name, *(part.name for part in self.spec.parts))


class ProgramCache:
    """The programs of one artifact store. Safe with threads, asyncio and forks."""

    def __init__(
        self,
        root_url: str,
        *,
        refresh_seconds: float,
        max_loaded: int,
        load_seconds: float,
        build: BuildSettings,
    ) -> None:
        self._root_url = root_url
        self._build = build
        self._refresh_seconds = refresh_seconds
        self._max_loaded = max_loaded
        self._load_seconds = load_seconds
        self._entries: OrderedDict[tuple[str, str], _Entry] = OrderedDict()
        begin_in_every_process(self)

    def begin(self) -> None:
        """Create the state of this process. After a fork, pending loads stay with the parent."""
        self._files = ObjectStore(self._root_url)
        self._lock = threading.Lock()
        self._outage = False
        self._nothing: Problem | None = None
        self._something = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._loaders = ThreadPoolExecutor(_LOADERS, thread_name_prefix="autoopt-load")
        self._entries = OrderedDict((key, entry) for key, entry in self._entries.items() if entry.snapshot)

    def get(self, tenant_id: str, spec: ModuleSpec, labels: tuple[Label, ...], request_id: str | None) -> Loaded:
        """Return the program for a request. Waits only for the first load, at most `load_seconds`."""
        entry = self._entry(tenant_id, spec, labels)
        if entry.snapshot is None:
            wait([entry.first_load], timeout=self._load_seconds)
        return self._snapshot(entry).loaded(labels, request_id)

    async def aget(self, tenant_id: str, spec: ModuleSpec, labels: tuple[Label, ...], request_id: str | None) -> Loaded:
        """Like `get`, without blocking the event loop."""
        entry = self._entry(tenant_id, spec, labels)
        if entry.snapshot is None:
            await asyncio.wait([asyncio.wrap_future(entry.first_load)], timeout=self._load_seconds)
        return self._snapshot(entry).loaded(labels, request_id)

    def problems(self) -> list[Problem]:
        with self._lock:
            own = [entry.problem for entry in self._entries.values() if entry.problem]
        return [*own, *([self._nothing] if self._nothing else [])]

    def status(self) -> list[Status]:
        with self._lock:
            entries = list(self._entries.values())
        return [
            Status(
                entry.tenant_id,
                entry.spec.name,
                pointer.version if pointer else None,
                (pointer.canary or {}) if pointer else {},
                entry.read_at,
                entry.problem,
            )
            for entry in entries
            for pointer in [entry.snapshot.pointer if entry.snapshot else None]
        ]

    def refresh(self, *, only_due: bool = True) -> None:
        """Follow the pointers of loaded modules and drop unused modules. Never raises."""
        now = time.monotonic()
        idle_since = now - IDLE_REFRESHES * self._refresh_seconds
        with self._lock:
            for key, entry in list(self._entries.items()):
                # While the store fails, a dropped module could not be loaded again.
                if entry.used < idle_since and entry.problem is None and entry.snapshot:
                    del self._entries[key]
            due = [e for e in self._entries.values() if e.snapshot and (e.due <= now or not only_due)]
        if not due:
            return
        places = {(entry.tenant_id, module) for entry in due for module in entry.modules}
        try:
            pointers = read_pointers(self._files, places)
        except Exception as e:  # noqa: BLE001 - a store's driver may raise anything
            down = ArtifactStoreUnavailable(f"artifact store: {e}", "check AUTOOPT_ARTIFACTS_URL")
            pointers = dict.fromkeys(places, down)
        for entry in due:
            self._follow(entry, {module: pointers[entry.tenant_id, module] for module in entry.modules})
        self._check_not_empty(pointers.values())

    def close(self) -> None:
        """Stop the thread. Loaded programs stay usable."""
        self._stopped.set()

    def _entry(self, tenant_id: str, spec: ModuleSpec, labels: tuple[Label, ...]) -> _Entry:
        """Return the entry to serve from. A new entry starts to load, and evicts the least recently used one."""
        key = (tenant_id, spec.name)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_keep_refreshing,
                    args=(weakref.ref(self), self._stopped, self._refresh_seconds / _TICKS),
                    name="autoopt-refresh",
                    daemon=True,
                )
                self._thread.start()
            entry = self._entries.get(key)
            if entry is None:
                entry = self._entries[key] = _Entry(validate_tenant_id(tenant_id), spec)
                while len(self._entries) > self._max_loaded:
                    self._entries.popitem(last=False)
                self._loaders.submit(self._load_first, entry, labels)
            else:
                self._entries.move_to_end(key)
                entry.used = time.monotonic()
        return entry

    def _load_first(self, entry: _Entry, labels: tuple[Label, ...]) -> None:
        try:
            places = [(entry.tenant_id, module) for module in entry.modules]
            pointers = read_pointers(self._files, places)
            self._follow(entry, {module: pointers[entry.tenant_id, module] for module in entry.modules}, labels)
            self._check_not_empty(pointers.values())
        except Exception as e:  # noqa: BLE001 - a store's driver may raise anything
            self._failed(entry, ArtifactStoreUnavailable(f"{entry.name}: {e}", "check AUTOOPT_ARTIFACTS_URL"))
        finally:
            self._snapshot(entry)
            entry.first_load.set_result(None)

    def _check_not_empty(self, pointers: Collection[Pointer | AutooptError | None]) -> None:
        """Warn once if the artifact root is empty, because then the pipeline probably writes to another one."""
        if self._something:
            return
        if any(isinstance(pointer, AutooptError) for pointer in pointers):
            return  # which is reported separately
        try:
            self._something = any(pointers) or bool(self._files.names(""))
        except AutooptError:
            return
        with self._lock:
            if self._something:
                self._nothing = None
            elif self._nothing is None:
                problem = f"artifact root {without_secrets(self._root_url)} holds nothing, so only baselines serve"
                remedy = (
                    "set AUTOOPT_ARTIFACTS_URL to the root of the pipeline; if that is it, wait for its first program"
                )
                logger.warning("%s -> %s", problem, remedy)
                self._nothing = Problem("artifacts", problem, remedy, datetime.now(UTC))

    def _snapshot(self, entry: _Entry) -> "Snapshot":
        """Return what serves now: the baseline if nothing could be loaded in time."""
        if entry.snapshot is None:
            from autoopt_pipeline.serving._snapshot import Snapshot

            if not entry.problem:
                self._failed(
                    entry, ArtifactStoreUnavailable(f"{entry.name}: not loaded in time", "check AUTOOPT_ARTIFACTS_URL")
                )
            entry.snapshot = Snapshot(entry.spec, {}, {}, self._build)
        return entry.snapshot

    def _follow(
        self,
        entry: _Entry,
        results: Mapping[str, Pointer | AutooptError | None],
        labels: tuple[Label, ...] | None = None,
    ) -> None:
        """Put into service what the pointers name, or record the reason why that fails."""
        pointers: dict[str, Pointer | None] = {}
        for module, pointer in results.items():
            if isinstance(pointer, AutooptError):
                self._failed(entry, pointer)
                return
            pointers[module] = pointer
        now = time.monotonic()
        if pointers == entry.seen and now < entry.retry:
            if entry.retry == float("inf"):
                self._well(entry, pointers)
            entry.due, entry.read_at = self._next(now, 1), datetime.now(UTC)
            return
        try:
            self._check_not_older(entry, pointers)
            from autoopt_pipeline.serving._snapshot import take_snapshot

            label_sets = entry.snapshot.label_sets if entry.snapshot else []
            taken, refused = take_snapshot(
                self._files,
                entry.tenant_id,
                entry.spec,
                pointers,
                [labels] if labels else label_sets,
                entry.snapshot,
                self._build,
            )
        except AutooptError as e:
            self._failed(entry, e, pointers)
            return
        except Exception as e:  # noqa: BLE001 - a module's own code may raise anything
            self._failed(entry, InvalidArtifact(f"{entry.name}: {type(e).__name__}: {e}", "see the log"), pointers)
            return
        if entry.seen is not None and taken.pointer != (entry.snapshot.pointer if entry.snapshot else None):
            logger.info("%s: %s serves", entry.name, version_name(taken.version))
        if refused:
            self._failed(entry, refused, pointers)
        else:
            self._well(entry, pointers)
        entry.snapshot = taken  # last, so that requests served by it already see its problem

    def _well(self, entry: _Entry, pointers: Mapping[str, Pointer | None]) -> None:
        if entry.problem:
            logger.info("%s: well again", entry.name)
        self._outage = False
        entry.problem, entry.failures, entry.retry = None, 0, float("inf")
        entry.seen, entry.read_at = pointers, datetime.now(UTC)
        entry.due = self._next(time.monotonic(), 1)

    def _check_not_older(self, entry: _Entry, pointers: Mapping[str, Pointer | None]) -> None:
        """Reject a pointer that is missing or older than before: the store lost data, or a late writer overwrote it."""
        for module, before in entry.snapshot.pointers.items() if entry.snapshot else ():
            pointer = pointers[module]
            if before and (pointer is None or pointer.sequence < before.sequence):
                raise InvalidArtifact(
                    f"{entry.tenant_id}/{module}: its pointer is {'older' if pointer else 'gone'}",
                    "check the artifact store; the last good version goes on serving",
                )

    def _failed(self, entry: _Entry, error: AutooptError, pointers: Mapping[str, Pointer | None] | None = None) -> None:
        """Record an error. Without pointers, they could not be read, and retries become less frequent."""
        now = time.monotonic()
        entry.failures += 1
        back_off = min(2 ** (entry.failures - 1), _LONGEST_BACK_OFF)
        if pointers is None:
            entry.due = self._next(now, back_off)
        else:
            entry.seen, entry.read_at = pointers, datetime.now(UTC)
            entry.due, entry.retry = self._next(now, 1), self._next(now, back_off)
        known = entry.problem
        if known and known.what == error.what:
            return
        entry.problem = Problem(entry.name, error.what, error.remedy, known.since if known else datetime.now(UTC))
        # A store that is down affects all tenants, so it is logged once.
        if not (error.transient and self._outage):
            logger.warning("%s", error)
        self._outage = self._outage or error.transient

    def _next(self, now: float, intervals: float) -> float:
        jitter = 1 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - not a secret
        return now + self._refresh_seconds * intervals * jitter


def _keep_refreshing(programs: "weakref.ref[ProgramCache]", stopped: threading.Event, seconds: float) -> None:
    while not stopped.wait(seconds):
        alive = programs()
        if alive is None:
            return
        alive.refresh()
        del alive
