"""Both stores against the real thing."""

import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from autoopt_pipeline.errors import (
    ConfigConflict,
    ConfigStoreUnavailable,
    InvalidConfig,
    InvalidSettings,
    UnknownTenant,
)
from autoopt_pipeline.tenants.config import RoutingConfigUnified, with_field
from autoopt_pipeline.tenants.store import open_config_store, read_config, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore, changes_in


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'nested' / 'config.db'}"
    return request.getfixturevalue("redis_url")


@pytest.fixture
def store(url: str) -> TenantConfigStore:
    return open_config_store(url)


def test_every_write_is_a_version_that_can_be_read_again(store: TenantConfigStore, url: str, tenant: str) -> None:
    config = RoutingConfigUnified(tenant_id=tenant)
    assert write_config(store, config) == 1
    assert write_config(store, with_field(config, "min_samples_for_optimization", "7")) == 2
    assert [entry.version for entry in store.history(tenant)] == [1, 2]
    assert store.history(tenant)[0].parse() == config
    assert read_config(open_config_store(url), tenant)[0].min_samples_for_optimization == 7
    assert store.current()[tenant].written_at.tzinfo is not None


def test_a_removed_tenant_keeps_its_history(store: TenantConfigStore, tenant: str) -> None:
    write_config(store, RoutingConfigUnified(tenant_id=tenant))
    store.write(tenant, None)
    assert tenant not in store.current()
    assert len(store.history(tenant)) == 2
    with pytest.raises(UnknownTenant, match=f"tenant {tenant} has no configuration"):
        read_config(store, tenant)
    assert write_config(store, RoutingConfigUnified(tenant_id=tenant)) == 3
    assert tenant in store.current()


def test_what_every_version_did_is_told_across_tenants_newest_first_with_who_wrote_it(
    store: TenantConfigStore, tenant: str
) -> None:
    config, other = RoutingConfigUnified(tenant_id=tenant), RoutingConfigUnified(tenant_id=f"{tenant}:b")
    write_config(store, config, actor="ada")
    write_config(store, other, actor="import by grace")
    write_config(store, config, actor="marta")
    store.write(tenant, None, actor="ada")
    gone = datetime.now(UTC)
    store.write(tenant, None, actor="ada", since=gone)
    write_config(store, config, actor="grace")
    write_config(store, config, actor="grace")
    told = [(each.tenant_id, each.version, each.actor, each.what) for each in store.changes(None, 100)]
    assert told == [
        (tenant, 6, "grace", "configuration_saved"),
        (tenant, 5, "grace", "tenant_added"),
        (tenant, 4, "ada", "artifacts_deleted"),
        (tenant, 3, "ada", "tenant_removed"),
        (tenant, 2, "marta", "configuration_saved"),
        (f"{tenant}:b", 1, "import by grace", "tenant_added"),
        (tenant, 1, "ada", "tenant_added"),
    ]
    pages, before = [], None
    while page := store.changes(before, 3):
        pages += page
        before = page[-1].at
    assert pages == store.changes(None, 100)
    history = store.history(tenant)
    assert changes_in(history) == [each for each in reversed(pages) if each.tenant_id == tenant]
    assert [entry.since for entry in history] == [None] * 3 + [gone] * 3  # later versions carry it on
    assert (store.current()[tenant].actor, store.current()[tenant].since) == ("grace", gone)


def test_a_stale_write_is_refused(store: TenantConfigStore, tenant: str) -> None:
    config = RoutingConfigUnified(tenant_id=tenant)
    write_config(store, config)
    write_config(store, config, expected_version=1)
    with pytest.raises(ConfigConflict, match="at version 2, not 1"):
        write_config(store, config, expected_version=1)


def test_concurrent_writers_lose_no_version(url: str, tenant: str) -> None:
    config = RoutingConfigUnified(tenant_id=tenant)

    def write_some() -> None:
        store = open_config_store(url)
        for _ in range(5):
            write_config(store, config)

    writers = [threading.Thread(target=write_some) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [entry.version for entry in open_config_store(url).history(tenant)] == list(range(1, 21))


def test_one_malformed_configuration_does_not_hide_the_others(store: TenantConfigStore, tenant: str) -> None:
    write_config(store, RoutingConfigUnified(tenant_id=tenant))
    store.write(f"{tenant}-bad", {"tenant_id": f"{tenant}-bad", "min_samples_for_optimization": -1})
    store.write(f"{tenant}-foreign", {"tenant_id": tenant})
    current = store.current()
    assert current[tenant].parse().tenant_id == tenant
    with pytest.raises(InvalidConfig, match="min_samples_for_optimization"):
        current[f"{tenant}-bad"].parse()
    with pytest.raises(InvalidConfig, match="under its own tenant id"):
        current[f"{tenant}-foreign"].parse()


def test_an_entry_that_somebody_else_wrote_is_that_tenants_error_alone(redis_url: str, tenant: str) -> None:
    store = open_config_store(redis_url)
    write_config(store, RoutingConfigUnified(tenant_id=tenant))
    client = redis.Redis.from_url(redis_url)
    for i, foreign in enumerate(['{"tenant_id": "x"}', "not json", "[]", '{"version": "two"}']):
        client.hset("autoopt:configs", f"{tenant}-{i}", foreign)
    current = store.current()
    assert current[tenant].parse().tenant_id == tenant
    for i in range(4):
        with pytest.raises(InvalidConfig, match=f"{tenant}-{i}"):
            current[f"{tenant}-{i}"].parse()
        client.hdel("autoopt:configs", f"{tenant}-{i}")


@pytest.fixture(params=["sqlite", "redis", "malformed redis"])
def broken_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "malformed redis":
        return "redis://:hun/ter2@127.0.0.1"
    if request.param == "redis":
        return "redis://user:hunter2@127.0.0.1:1/0"
    (tmp_path / "file").write_text("not a database, but long enough to be read as one " * 50)
    return f"sqlite:///{tmp_path / 'file'}"


@pytest.mark.parametrize(
    "use", [lambda store: store.current(), lambda store: store.history("a"), lambda store: store.write("a", {})]
)
def test_a_store_that_fails_is_an_error_that_names_it_without_its_password(
    broken_url: str, use: Callable[[TenantConfigStore], object]
) -> None:
    with pytest.raises(ConfigStoreUnavailable) as error:
        use(open_config_store(broken_url))
    assert "AUTOOPT_CONFIG_STORE_URL" in str(error.value)
    assert "hun" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        *("postgres://u:hunter2@h/db", "nonsense", "mysql:x"),
        *("sqlite:x", "sqlite://x", "sqlite:///", "sqlite:///:memory:"),
    ],
)
def test_a_url_that_is_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidSettings, match="set AUTOOPT_CONFIG_STORE_URL to sqlite:///") as error:
        open_config_store(url)
    assert "hunter2" not in str(error.value)


def test_bytes_that_are_no_text_in_one_tenants_entry_do_not_hide_the_others(
    store: TenantConfigStore, url: str, tenant: str
) -> None:
    write_config(store, RoutingConfigUnified(tenant_id=tenant))
    broken = f"{tenant}-x"
    store.write(broken, {})
    if url.startswith("redis"):
        redis.Redis.from_url(url).hset("autoopt:configs", broken, b"\xff{")
    else:
        with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
            db.execute("UPDATE tenant_configs SET document = CAST(x'ff7b' AS TEXT) WHERE tenant_id = ?", (broken,))
    found = store.current()
    assert found[tenant].parse().tenant_id == tenant
    with pytest.raises(InvalidConfig):
        found[broken].parse()


def test_who_only_reads_makes_no_database(tmp_path: Path) -> None:
    store = open_config_store(f"sqlite:///{tmp_path / 'nested' / 'config.db'}")
    assert (store.current(), store.history("acme"), store.changes(None, 9)) == ({}, [], [])
    store.check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_database_can_be_made_is_told_before_one_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_config_store(f"sqlite:///{tmp_path / 'file' / 'config.db'}")
    with pytest.raises(ConfigStoreUnavailable, match="file is not a folder"):
        store.check_writable()
