"""Tenants' configurations in a SQLite file: the embedded default."""

import json
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from autoopt_pipeline.errors import ConfigStoreUnavailable
from autoopt_pipeline.places import creation_problem
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.stores.base import (
    NEVER,
    ConfigChange,
    Risk,
    StoredConfig,
    change_between,
    check_version,
    moment_of,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tenant_configs (
    tenant_id TEXT NOT NULL, version INTEGER NOT NULL, written_at TEXT NOT NULL, document TEXT,
    written_by TEXT NOT NULL DEFAULT '', since TEXT,
    PRIMARY KEY (tenant_id, version)
) WITHOUT ROWID
"""
_BY_TIME = "CREATE INDEX IF NOT EXISTS tenant_configs_by_time ON tenant_configs (written_at)"
# The other columns are of the row with the maximum: https://sqlite.org/lang_select.html#bareagg
_CURRENT = """
SELECT * FROM (
    SELECT tenant_id, MAX(version), written_at, document, written_by, since FROM tenant_configs GROUP BY tenant_id
) WHERE document IS NOT NULL
"""
_HISTORY = """
SELECT tenant_id, version, written_at, document, written_by, since FROM tenant_configs
WHERE tenant_id = ? ORDER BY version DESC LIMIT ?
"""
# Reads only whether there is a document, because documents may be long.
_CHANGES = """
SELECT c.tenant_id, c.version, c.written_at, substr(c.document, 1, 0), c.written_by, c.since,
       b.tenant_id, b.version, b.written_at, substr(b.document, 1, 0), b.written_by, b.since
FROM tenant_configs AS c LEFT JOIN tenant_configs AS b ON b.tenant_id = c.tenant_id AND b.version = c.version - 1
WHERE c.written_at < ? ORDER BY c.written_at DESC LIMIT ?
"""

# Sorts after every time, and before any text that is not a time.
_EVER = "9999"


class SqliteConfigStore:
    """See `TenantConfigStore`. The first write creates the file and its folder."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    @property
    def name(self) -> str:
        return f"sqlite:///{self._path}"

    def current(self) -> Mapping[str, StoredConfig]:
        with self._connection() as db:
            return {row[0]: _stored(row) for row in db.execute(_CURRENT)}

    def history(self, tenant_id: str) -> list[StoredConfig]:
        with self._connection() as db:
            return [_stored(row) for row in db.execute(_HISTORY, (tenant_id, -1))][::-1]

    def changes(self, before: datetime | None, limit: int) -> list[ConfigChange]:
        with self._connection() as db:
            rows = db.execute(_CHANGES, (before.isoformat() if before else _EVER, limit))
            return [change_between(_stored(row[6:]) if row[6] else None, _stored(row[:6])) for row in rows]

    def write(
        self,
        tenant_id: str,
        document: object | None,
        *,
        actor: str = "",
        expected_version: int | None = None,
        since: datetime | None = None,
    ) -> int:
        validate_tenant_id(tenant_id)
        with self._connection(make=True) as db:
            db.execute("BEGIN IMMEDIATE")
            last = [_stored(row) for row in db.execute(_HISTORY, (tenant_id, 1))]
            newest = last[0].version if last else 0
            check_version(tenant_id, newest, expected_version)
            since = since or (last[0].since if last else None)
            row = (
                tenant_id,
                newest + 1,
                datetime.now(UTC).isoformat(),
                None if document is None else json.dumps(document, sort_keys=True),
                actor,
                since.isoformat() if since else None,
            )
            db.execute("INSERT INTO tenant_configs VALUES (?, ?, ?, ?, ?, ?)", row)
            db.execute("COMMIT")
            return newest + 1

    def check_writable(self) -> None:
        if not self._path.exists():
            if problem := creation_problem(self._path):
                raise self._unavailable(problem)
            return
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO tenant_configs VALUES ('', 0, '', NULL, '', NULL)")
            db.execute("ROLLBACK")

    def risks(self) -> list[Risk]:
        return []

    @contextmanager
    def _connection(self, *, make: bool = False) -> Generator[sqlite3.Connection, None, None]:
        """Open the database. Without a file and without `make`, opens an empty database in memory."""
        try:
            if make:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            path = self._path if make or self._path.exists() else ":memory:"
            with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
                # Invalid UTF-8 in one tenant's row must not hide the others.
                db.text_factory = lambda text: text.decode(errors="replace")
                db.execute(_SCHEMA)
                db.execute(_BY_TIME)
                yield db
        except (sqlite3.Error, OSError) as e:
            raise self._unavailable(e) from e

    def _unavailable(self, cause: object) -> ConfigStoreUnavailable:
        return ConfigStoreUnavailable(
            f"configuration store {self.name}: {cause}",
            "check AUTOOPT_CONFIG_STORE_URL, and that the file is a database this user may write",
        )


def _stored(row: tuple[str, int, str, str | None, str, str | None]) -> StoredConfig:
    tenant_id, version, written_at, document, actor, since = row
    return StoredConfig(tenant_id, version, moment_of(written_at) or NEVER, document, str(actor), moment_of(since))
