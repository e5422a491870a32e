"""On a terminal of 80 columns nothing that is copied out of what a command prints is broken or cut."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import TrafficProfile
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.run_history.instance import open_instance
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.client import Phoenix
from tests.support.command_line import autoopt
from tests.support.phoenix_traffic import requests
from tests.support.stored_programs import made_program
from tests.support.stored_programs import store as stored_program
from tests.support.tenant_history import configure, failed_run, materialize

TENANT = "an-organisation-with-a-long-name:and-a-department-whose-name-is-long"


@pytest.fixture
def version(home: Path, store: TenantConfigStore) -> str:
    """The active version of a tenant with a long name."""
    configure(store, TENANT)
    artifacts = VersionStore(ObjectStore(str(home / ".autoopt" / "artifacts")), TENANT, "routing")
    return stored_program(artifacts, made_program(TENANT), active=True)


def told(*arguments: str, status: int = 0, width: int = 80) -> list[str]:
    return autoopt(*arguments, width=width, status=status).split()


def test_a_status_breaks_no_tenant_and_no_version(home: Path, version: str) -> None:
    with open_instance(home) as instance:
        materialize(instance, TENANT, "routing", traces=1, end=datetime.now(UTC))
    words = told("status", TENANT)
    assert TENANT in words
    assert f"{version}," in words
    assert "too_few_traces" in words


def test_a_run_that_failed_is_named_whole(home: Path, version: str) -> None:
    with open_instance(home) as instance:
        run_id = failed_run(instance, TENANT, ["routing"])
    assert any(run_id in word for word in told("why", TENANT, "routing"))


@pytest.mark.parametrize("command", ["versions", "show", "history"])
def test_what_is_told_of_programs_breaks_no_version(home: Path, version: str, command: str) -> None:
    assert version in told(command, TENANT, "routing")


def test_two_versions_that_are_compared_are_named_whole(home: Path, version: str) -> None:
    assert version in told("diff", TENANT, "routing", "baseline", version)


@pytest.mark.parametrize("width", [80, 40])
def test_tenants_are_listed_whole_with_what_is_wrong_with_one(
    home: Path, store: TenantConfigStore, version: str, width: int
) -> None:
    store.write("broken", {"tenant_id": "broken", "mode": "maybe"})
    words = told("tenants", "list", width=width)
    assert TENANT in words
    assert "mode:" in words


def test_a_table_is_as_wide_as_the_terminal_where_no_word_is_broken(home: Path, store: TenantConfigStore) -> None:
    configure(store, "acme")
    listed = autoopt("tenants", "list", width=80).splitlines()
    assert max(map(len, listed)) <= 80
    assert any(line.split()[:2] == ["acme", "yes"] for line in listed)


def test_the_trace_of_a_sample_is_named_whole(store: TenantConfigStore, phoenix: Phoenix, tenant: str) -> None:
    configure(store, tenant)
    send_traffic(phoenix, tenant, requests(3, TrafficProfile(reviewed=0)))
    lines = autoopt("traces", "sample", tenant, "--module", "routing", "-n", "1", width=80).splitlines()
    (line,) = [line for line in lines if " trace " in line]
    assert len(line.split()[-1]) == 32
