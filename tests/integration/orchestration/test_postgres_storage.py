"""Dagster's storage on Postgres with connections that are used again, against a real server."""

import gc
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from dagster_postgres.run_storage import PostgresRunStorage
from sqlalchemy import event

from autoopt_pipeline.devtools.processes import Processes
from autoopt_pipeline.orchestration.postgres_storage import KEPT_SECONDS
from tests.support.postgres import Postgres, new_postgres

_OF_THE_INSTANCE = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


@pytest.fixture(scope="module", params=["plain", "encrypted"])
def database(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Postgres]:
    with (
        new_postgres(encrypted=request.param == "encrypted") as made,
        Processes(tmp_path_factory.mktemp("postgres")) as group,
    ):
        made.start(group)
        yield made


@pytest.fixture
def instance(database: Postgres, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"storage": database.dagster_storage}) as made:
        _wait_until_open(database, 0)  # those that looked for tables
        yield made


@pytest.fixture
def opened(instance: dg.DagsterInstance) -> list[str]:
    """Grows with each connection that is opened."""
    found: list[str] = []
    event.listen(_runs(instance)._engine, "connect", lambda *_: found.append("a connection"))
    return found


def test_many_statements_share_a_connection(instance: dg.DagsterInstance, opened: list[str]) -> None:
    for number in range(30):
        instance.report_runless_asset_event(dg.AssetObservation("routing", partition=f"tenant-{number}"))
        assert instance.get_run_by_id("none") is None
    assert instance.fetch_observations(dg.AssetKey("routing"), limit=100).records[0].partition_key == "tenant-29"
    assert 1 <= len(opened) <= 3  # idle ones are closed every second, and a busy machine may take that long


def test_what_is_not_used_is_closed(instance: dg.DagsterInstance, database: Postgres, opened: list[str]) -> None:
    assert instance.get_run_by_id("none") is None
    _wait_until_open(database, 0)
    assert instance.get_run_by_id("none") is None
    assert len(opened) == 2


def test_what_was_in_use_while_others_were_closed_is_closed_later(
    instance: dg.DagsterInstance, database: Postgres, opened: list[str]
) -> None:
    gc.disable()
    try:
        with _runs(instance).connect():
            assert instance.get_run_by_id("none") is None
            assert len(opened) == 2
            _wait_until_open(database, 1)
        _wait_until_open(database, 0)
    finally:
        gc.enable()


def test_a_connection_that_postgres_has_ended_is_replaced(
    instance: dg.DagsterInstance, database: Postgres, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoopt_pipeline.orchestration.postgres_storage.KEPT_SECONDS", 600)
    for number in (1, 2, 3):
        assert instance.get_run_by_id("none") is None
        assert instance.get_run_by_id("none") is None
        assert len(opened) == number
        _ask(database, f"SELECT count(pg_terminate_backend(pid)) {_OF_THE_INSTANCE}")
        _wait_until_open(database, 0)


def test_the_columns_of_tables_are_asked_for_once(instance: dg.DagsterInstance) -> None:
    statements: list[str] = []
    event.listen(_runs(instance)._engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    for _ in range(3):
        assert instance.get_run_by_id("none") is None
    assert sum("pg_attribute" in statement for statement in statements) == 1
    assert sum("FROM runs" in statement for statement in statements) == 3


def _runs(instance: dg.DagsterInstance) -> PostgresRunStorage:
    assert isinstance(instance.run_storage, PostgresRunStorage)
    return instance.run_storage


def _wait_until_open(database: Postgres, count: int) -> None:
    deadline = time.monotonic() + 20 * KEPT_SECONDS
    while _open(database) > count:
        assert time.monotonic() < deadline, "unused connections stay open"
        time.sleep(0.1)


def _open(database: Postgres) -> int:
    return _ask(database, f"SELECT count(*) {_OF_THE_INSTANCE}")


def _ask(database: Postgres, statement: str) -> int:
    with closing(psycopg2.connect(database.url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        return int(row[0]) if row else 0
