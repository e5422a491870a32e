"""Dagster's storage on Postgres, which uses a connection more than once. `dagster.yaml` names it.

Dagster opens a connection for each statement, and asks Postgres for the columns of a table whenever it reads a run.
Both took half of the time of launching a run.
"""

import select
import threading
from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from dagster._serdes import ConfigurableClassData
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, get_token_provider_from_config, pg_url_from_config
from psycopg2 import extensions
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

KEPT_SECONDS = 1.0
"""How long a connection may stay open unused. Every step of a run has a process, and Postgres by default a hundred
connections, so a process that is not busy must hold none."""

_KEPT = 10
"""Unused connections that a process keeps: as many as threads of the daemon write at once. It may open more."""


class ReusingPostgresStorage(DagsterPostgresStorage):
    """Runs, events and schedules. It is configured as Dagster's own `storage.postgres`."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        tokens, url = get_token_provider_from_config(config_value), pg_url_from_config(config_value)
        storage = cls(url, config_value.get("should_autocreate_tables", True), inst_data, tokens)
        engine = create_pg_engine(url, tokens, isolation_level="AUTOCOMMIT", pool_size=_KEPT, max_overflow=-1)
        reuse_connections(engine)
        runs, events, schedules = storage._run_storage, storage._event_log_storage, storage._schedule_storage
        for part in (runs, events, schedules):
            part._engine = engine
        _ask_once(runs, "has_run_stats_index_cols", "has_backfill_id_column")
        _ask_once(events, "has_table")
        _ask_once(schedules, "has_instigators_table")
        return storage


def reuse_connections(engine: Engine) -> None:
    """Close what is unused every `KEPT_SECONDS`, and use no connection that Postgres has closed."""
    closing = threading.Lock()

    def close() -> None:
        closing.release()
        # Not the engine's own dispose(), which makes another pool: what is in use would return to the old one, and stay
        # open until Python collects it.
        engine.pool.dispose()

    def close_later(*_: object) -> None:
        if closing.acquire(blocking=False):
            timer = threading.Timer(KEPT_SECONDS, close)
            timer.daemon = True
            timer.start()

    event.listen(engine, "checkin", close_later)
    event.listen(engine, "checkout", _refuse_closed)


def _refuse_closed(connection: extensions.connection, *_: object) -> None:
    """Raise `DisconnectionError`, for another connection, where Postgres has said something unasked: that it ends.

    SQLAlchemy's own check asks Postgres each time, which is as slow as the statements themselves.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if poll.poll(0):
        raise DisconnectionError


def _ask_once(storage: object, *names: str) -> None:
    """Remember what these methods say of tables, which nobody changes while a process runs."""
    for name in names:
        setattr(storage, name, cache(getattr(storage, name)))
