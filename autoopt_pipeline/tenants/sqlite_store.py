"""Tenants' configurations in a SQLite file: the embedded default."""

import json
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from autoopt_pipeline.errors import ConfigConflict, ConfigStoreUnavailable
from autoopt_pipeline.tenant_id import validate_tenant_id
from autoopt_pipeline.tenants.config import json_or_text
from autoopt_pipeline.tenants.store import NEVER, Risk, StoredConfig

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tenant_configs (
    tenant_id TEXT NOT NULL, version INTEGER NOT NULL, written_at TEXT NOT NULL, document TEXT,
    PRIMARY KEY (tenant_id, version)
) WITHOUT ROWID
"""
_CURRENT = """
SELECT tenant_id, version, written_at, document FROM tenant_configs AS c
WHERE document IS NOT NULL
  AND version = (SELECT MAX(version) FROM tenant_configs WHERE tenant_id = c.tenant_id)
"""


class SqliteConfigStore:
    """See `TenantConfigStore`. The file and its folder are made on first use."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def current(self) -> Mapping[str, StoredConfig]:
        with self._connection() as db:
            return {row[0]: _stored(row) for row in db.execute(_CURRENT)}

    def history(self, tenant_id: str) -> list[StoredConfig]:
        with self._connection() as db:
            rows = db.execute(
                "SELECT tenant_id, version, written_at, document FROM tenant_configs "
                "WHERE tenant_id = ? ORDER BY version",
                (tenant_id,),
            )
            return [_stored(row) for row in rows]

    def write(self, tenant_id: str, document: object | None, *, expected_version: int | None = None) -> int:
        validate_tenant_id(tenant_id)
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            newest = db.execute(
                "SELECT COALESCE(MAX(version), 0) FROM tenant_configs WHERE tenant_id = ?", (tenant_id,)
            ).fetchone()[0]
            check_version(tenant_id, newest, expected_version)
            text = None if document is None else json.dumps(document, sort_keys=True)
            row = (tenant_id, newest + 1, datetime.now(UTC).isoformat(), text)
            db.execute("INSERT INTO tenant_configs VALUES (?, ?, ?, ?)", row)
            db.execute("COMMIT")
            return newest + 1

    def check_writable(self) -> None:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO tenant_configs VALUES ('', 0, '', NULL)")
            db.execute("ROLLBACK")

    def risks(self) -> list[Risk]:
        return []

    @contextmanager
    def _connection(self) -> Generator[sqlite3.Connection, None, None]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as db:
                # What is no UTF-8 in one tenant's row must not hide the others.
                db.text_factory = lambda text: text.decode(errors="replace")
                db.execute(_SCHEMA)
                yield db
        except (sqlite3.Error, OSError) as e:
            raise ConfigStoreUnavailable(
                f"configuration store sqlite:///{self._path}: {e}",
                "check AUTOOPT_CONFIG_STORE_URL, and that the file is a database this user may write",
            ) from e


def check_version(tenant_id: str, newest: int, expected: int | None) -> None:
    """Raise `ConfigConflict` when somebody else wrote since `expected` was read."""
    if expected is not None and expected != newest:
        raise ConfigConflict(
            f"tenant {tenant_id}: the configuration is at version {newest}, not {expected}",
            "read it again and repeat the change",
        )


def decode_document(text: str | None) -> object | None:
    """The stored JSON; text that is none is kept as text, so that reading it names the trouble."""
    return None if text is None else json_or_text(text)


def _stored(row: tuple[str, int, str, str | None]) -> StoredConfig:
    tenant_id, version, written_at, document = row
    try:
        moment = datetime.fromisoformat(written_at)
    except (ValueError, TypeError):
        moment = NEVER
    return StoredConfig(tenant_id, version, moment, decode_document(document))
