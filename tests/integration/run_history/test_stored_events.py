"""What is read from Dagster's tables is what Dagster itself reads, for every kind of metadata that events have."""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from autoopt_pipeline.devtools.processes import Processes
from autoopt_pipeline.run_history.module_events import EventKind, read_events
from autoopt_pipeline.run_history.stored_events import events_after, events_by_id, times_by_id
from tests.support.postgres import new_postgres

SINCE = datetime.now(UTC) - timedelta(hours=1)
METADATA: Mapping[str, dg.MetadataValue] = {
    "text": dg.MetadataValue.text('a \ud83d\ude00 "quoted" text\nof two lines'),
    "markdown": dg.MetadataValue.md("| a | b |\n|---|---|"),
    "url": dg.MetadataValue.url("http://phoenix/x?y=1"),
    "float": dg.MetadataValue.float(0.1),
    "tiny": dg.MetadataValue.float(1e-300),
    "infinite": dg.MetadataValue.float(math.inf),
    "int": dg.MetadataValue.int(10**15),
    "bool": dg.MetadataValue.bool(value=True),
    "timestamp": dg.MetadataValue.timestamp(datetime(2026, 1, 1, tzinfo=UTC)),
    "list": dg.MetadataValue.json([1, 2.5, "x", None, {"a": [True]}]),
    "object": dg.MetadataValue.json({"b": {"c": 1}}),
}


@pytest.fixture(params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    if request.param == "sqlite":
        with dg.DagsterInstance.local_temp(str(tmp_path)) as made:
            yield made
        return
    with new_postgres() as database, Processes(tmp_path / "logs") as group:
        database.start(group)
        with dg.DagsterInstance.local_temp(str(tmp_path), overrides={"storage": database.dagster_storage}) as made:
            yield made


def report(instance: dg.DagsterInstance, metadata: Mapping[str, dg.MetadataValue]) -> None:
    for event in (dg.AssetMaterialization, dg.AssetObservation):
        instance.report_runless_asset_event(event("routing", partition="acme", metadata=metadata))


@pytest.mark.parametrize("kind", list(EventKind))
def test_every_kind_of_metadata_is_read_as_dagster_reads_it(instance: dg.DagsterInstance, kind: EventKind) -> None:
    report(instance, METADATA)
    official = list(read_events(instance, kind, "routing"))
    assert set(official[0].values) == set(METADATA)
    assert list(events_after(instance, kind, "routing", since=SINCE, after=0)) == official


def test_times_are_those_that_dagster_reads(instance: dg.DagsterInstance) -> None:
    report(instance, {})
    report(instance, {})
    official = {event.storage_id: event.at for event in read_events(instance, EventKind.MATERIALIZATION, "routing")}
    read = times_by_id(instance, "routing", [*official, 10**6])
    assert {key: abs(read[key] - at) < timedelta(milliseconds=1) for key, at in official.items()} == dict.fromkeys(
        official, True
    )
    assert read.keys() == official.keys()


def test_metadata_that_is_unknown_is_left_to_dagster(instance: dg.DagsterInstance) -> None:
    report(instance, {**METADATA, "path": dg.MetadataValue.path("/x"), "nothing": dg.MetadataValue.null()})
    official = list(read_events(instance, EventKind.MATERIALIZATION, "routing"))
    assert list(events_by_id(instance, "routing", [official[0].storage_id])) == official
    assert official[0].values["path"] == "/x"


def test_events_are_read_by_module_moment_and_place(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoopt_pipeline.run_history.stored_events.PAGE", 2)
    for number in range(5):
        report(instance, {"n": dg.MetadataValue.int(number)})
    instance.report_runless_asset_event(dg.AssetMaterialization("modality", partition="acme"))
    kind = EventKind.MATERIALIZATION
    read = list(events_after(instance, kind, "routing", since=SINCE, after=0))
    assert [event.values["n"] for event in read] == [0, 1, 2, 3, 4]
    assert [event.tenant for event in read] == ["acme"] * 5
    rest = events_after(instance, kind, "routing", since=SINCE, after=read[2].storage_id)
    assert [event.values["n"] for event in rest] == [3, 4]
    assert not list(events_after(instance, kind, "routing", since=datetime.now(UTC) + timedelta(hours=1), after=0))
    some = events_by_id(instance, "routing", [read[4].storage_id, read[1].storage_id, read[0].storage_id])
    assert sorted(event.values["n"] for event in some) == [0, 1, 4]
