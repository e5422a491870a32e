"""Thousands of tenants with a past, made quickly: rows are written as Dagster 1.13 and Phoenix 20 write them.

Sending as many traces would take Phoenix an hour, and materializing as many modules would take Dagster a day.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast

import dagster as dg
import yaml
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster._serdes import serialize_value
from sqlalchemy import create_engine, insert, text

from autoopt_pipeline.devtools.processes import LOOPBACK, Processes, free_port
from autoopt_pipeline.devtools.stack import copy_instance
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.names import PARTITION_TAG
from autoopt_pipeline.span_contract import CROSS_MODAL_SPAN, ORCHESTRATION_SPAN, ROUTING_SPAN, project_name
from autoopt_pipeline.tenants.store import open_config_store

if TYPE_CHECKING:
    from dagster._core.storage.event_log import SqlEventLogStorage
    from dagster._core.storage.runs import SqlRunStorage

HOUR = timedelta(hours=1)
AGENTS = [{"name": "search_agent", "description": ""}, {"name": "report_agent", "description": ""}]
TRACES_BEFORE = 20
"""Traces of every tenant that its last outcome has seen."""

_SPANS = (ROUTING_SPAN, CROSS_MODAL_SPAN, ORCHESTRATION_SPAN)
_REPORT = "### Holdout (300 traces)\n" + "| query | right | before | after |\n" * 130
"""As long as a run's report in words: some 4 kB."""


def names(count: int) -> list[str]:
    return [f"tenant-{number:06d}" for number in range(count)]


def write_configs(url: str, tenants: Sequence[str], *, interval_seconds: int, due: Sequence[str] = ()) -> None:
    """Store every tenant's configuration in a SQLite file; those that are `due` are so every hour."""
    hourly = frozenset(due)
    documents = {
        tenant: {
            "tenant_id": tenant,
            "agents": AGENTS,
            "modules": {module: {} for module in modules()},
            "optimization_interval_seconds": 3600 if tenant in hourly else interval_seconds,
        }
        for tenant in tenants
    }
    write_documents(url, documents)


def write_documents(url: str, documents: Mapping[str, object]) -> None:
    """Make these the only configurations in a SQLite file, all at once, for a commit each takes minutes."""
    first, document = next(iter(documents.items()))
    open_config_store(url).write(first, document)  # the first write makes the tables
    now = datetime.now(UTC).isoformat()
    rows = [(tenant, now, json.dumps(document)) for tenant, document in documents.items()]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as db, db:
        db.execute("DELETE FROM tenant_configs")
        db.executemany(
            "INSERT INTO tenant_configs (tenant_id, version, written_at, document) VALUES (?, 1, ?, ?)", rows
        )


def write_history(
    instance: dg.DagsterInstance, tenants: Sequence[str], *, at: datetime, generations: int = 2, troubled: bool = True
) -> None:
    """Register the tenants, each with earlier outcomes of every module, the newest one at that time.

    If they are `troubled`, the last run of one in a hundred failed, and one in a thousand has a run under way.
    """
    instance.add_dynamic_partitions("tenants", list(tenants))
    for module in modules():  # the first event makes the asset known
        instance.report_runless_asset_event(_materialization(module, tenants[0], at - 99 * HOUR))
    for generation in reversed(range(generations)):
        ended = at - generation * HOUR
        runs = {tenant: str(uuid.uuid4()) for tenant in tenants}
        _write_runs(instance, runs, dg.DagsterRunStatus.SUCCESS, ended)
        for module in modules():
            _write_outcomes(instance, module, runs, ended)
    if not troubled:
        return
    failed = {tenant: str(uuid.uuid4()) for tenant in tenants[50::100]}
    _write_runs(instance, failed, dg.DagsterRunStatus.FAILURE, at + timedelta(minutes=5))
    running = {tenant: str(uuid.uuid4()) for tenant in tenants[70::1000]}
    _write_runs(instance, running, dg.DagsterRunStatus.STARTED, datetime.now(UTC))


def _materialization(module: str, tenant: str, ended: datetime) -> dg.AssetMaterialization:
    names = [agent["name"] for agent in AGENTS]
    return dg.AssetMaterialization(
        module,
        partition=tenant,
        metadata={
            "verdict": "rejected",
            "reason": "the candidate is not better: 71.0 % against 70.5 %, p = 0.41",
            "report": dg.MetadataValue.md(_REPORT),
            "incumbent_score": 0.705,
            "candidate_score": 0.71,
            "p_value": 0.41,
            "version": "20260101T000000Z-0123abcd",
            "incumbent": "baseline",
            "window_start": dg.MetadataValue.timestamp(ended - timedelta(days=30)),
            "window_end": dg.MetadataValue.timestamp(ended),
            "spans_read": TRACES_BEFORE,
            "annotation_total": 1,
            "annotation_marks": dg.MetadataValue.json([int((ended - HOUR).timestamp())]),
            "lm_calls": 900,
            "lm_tokens": 400_000,
            "provenance": dg.MetadataValue.json({"human": 1, "judge": 0, "outcome": 19}),
            "balance": dg.MetadataValue.json(dict.fromkeys(names, 10)),
            "labels": dg.MetadataValue.json(names if module == "routing" else []),
        },
    )


def _write_outcomes(instance: dg.DagsterInstance, module: str, runs: dict[str, str], ended: datetime) -> None:
    event = DagsterEvent(
        event_type_value="ASSET_MATERIALIZATION",
        job_name="__ASSET_JOB",
        step_key=module,
        event_specific_data=StepMaterializationData(_materialization(module, "@tenant@", ended)),
    )
    entry = dg.EventLogEntry(
        error_info=None,
        user_message="",
        level=10,
        run_id="@run@",
        timestamp=ended.timestamp(),
        step_key=module,
        job_name="__ASSET_JOB",
        dagster_event=event,
    )
    text = serialize_value(entry)
    row = {
        "dagster_event_type": "ASSET_MATERIALIZATION",
        "timestamp": ended.replace(tzinfo=None),
        "step_key": module,
        "asset_key": dg.AssetKey(module).to_string(),
    }
    with cast("SqlEventLogStorage", instance.event_log_storage).index_connection() as db:
        for some in _chunks(list(runs)):
            rows = [
                row
                | {
                    "event": text.replace("@tenant@", tenant).replace("@run@", runs[tenant]),
                    "run_id": runs[tenant],
                    "partition": tenant,
                }
                for tenant in some
            ]
            db.execute(insert(SqlEventLogStorageTable), rows)


def _write_runs(
    instance: dg.DagsterInstance, runs: dict[str, str], status: dg.DagsterRunStatus, ended: datetime
) -> None:
    selection = frozenset(dg.AssetKey(module) for module in modules())
    began = ended - timedelta(minutes=2)
    with cast("SqlRunStorage", instance.run_storage).connect() as db:
        for some in _chunks(list(runs)):
            rows, tags = [], []
            for tenant in some:
                run = dg.DagsterRun(
                    "__ASSET_JOB",
                    run_id=runs[tenant],
                    status=status,
                    tags={PARTITION_TAG: tenant},
                    asset_selection=selection,
                )
                rows.append(
                    {
                        "run_id": run.run_id,
                        "pipeline_name": run.job_name,
                        "status": status.value,
                        "run_body": serialize_value(run),
                        "partition": tenant,
                        "create_timestamp": began.replace(tzinfo=None),
                        "update_timestamp": ended.replace(tzinfo=None),
                        "start_time": began.timestamp(),
                        "end_time": ended.timestamp() if run.is_finished else None,
                    }
                )
                tags.append({"run_id": run.run_id, "key": PARTITION_TAG, "value": tenant})
            db.execute(insert(RunsTable), rows)
            db.execute(insert(RunTagsTable), tags)


def write_traces(
    database_url: str, tenants: Sequence[str], *, first: datetime, last: datetime, count: int, size: int = 0
) -> None:
    """Give each tenant's project so many traces more, evenly spread, and one annotation each time.

    A trace is a decision of every kind of span, with `size` more characters in its attributes.
    """
    step = (last - first) / count
    attributes = json.dumps(
        {
            "routing": {"query": "find the report", "chosen_agent": "search_agent", "confidence": 0.9},
            "input": {"value": "x" * size},
        }
    )
    on_sqlite = database_url.startswith("sqlite:")
    engine = create_engine(database_url, connect_args={"timeout": 60} if on_sqlite else {"options": "-c timezone=UTC"})
    with engine.connect() as db:
        if on_sqlite:
            db.execute(text("PRAGMA synchronous = OFF"))
        trace_id, span_id = (
            db.scalar(text(f"SELECT COALESCE(MAX(id), 0) FROM {table}"))  # noqa: S608
            for table in ("traces", "spans")
        )
        db.commit()
        for some in _chunks(tenants, max(1, 10_000 // count)):
            projects = [{"name": project_name(tenant), "begin": "#5bdbff", "end": "#1c76fc"} for tenant in some]
            traces, spans, annotations = [], [], []
            db.execute(
                text(
                    "INSERT INTO projects (name, gradient_start_color, gradient_end_color) "
                    "VALUES (:name, :begin, :end) ON CONFLICT DO NOTHING"
                ),
                projects,
            )
            for named in projects:
                project = db.scalar(text("SELECT id FROM projects WHERE name = :name"), named)
                for number in range(count):
                    trace_id += 1
                    began = first + number * step
                    times = {"start": _stored(began), "end": _stored(began + timedelta(seconds=1))}
                    traces.append({"id": trace_id, "project": project, "trace": f"{trace_id:032x}", **times})
                    for place, kind in enumerate(_SPANS):
                        span_id += 1
                        spans.append(
                            {
                                "id": span_id,
                                "trace": trace_id,
                                "span": f"{span_id:016x}",
                                "parent": f"{span_id - place:016x}" if place else None,
                                "name": kind,
                                "attributes": attributes,
                                **times,
                            }
                        )
                annotations.append({"span": span_id})
            db.execute(
                text(
                    "INSERT INTO traces (id, project_rowid, trace_id, start_time, end_time) "
                    "VALUES (:id, :project, :trace, :start, :end)"
                ),
                traces,
            )
            db.execute(
                text(
                    "INSERT INTO spans (id, trace_rowid, span_id, parent_id, name, span_kind, start_time, end_time, "
                    "attributes, events, status_code, status_message, cumulative_error_count, "
                    "cumulative_llm_token_count_prompt, cumulative_llm_token_count_completion) "
                    "VALUES (:id, :trace, :span, :parent, :name, 'CHAIN', :start, :end, "
                    ":attributes, '[]', 'UNSET', '', 0, 0, 0)"
                ),
                spans,
            )
            db.execute(
                text(
                    "INSERT INTO span_annotations (span_rowid, name, label, metadata, annotator_kind, source) "
                    "VALUES (:span, 'modality_review', 'text', '{}', 'HUMAN', 'API')"
                ),
                annotations,
            )
            db.commit()
    engine.dispose()


def _stored(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def _chunks(items: Sequence[str], size: int = 1000) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def make_home(home: Path, postgres_url: str | None = None) -> None:
    """A DAGSTER_HOME with the project's `dagster.yaml`, with its storage in Postgres where that is given."""
    copy_instance(home)
    if postgres_url:
        path = home / "dagster.yaml"
        document = yaml.safe_load(path.read_text())
        document["storage"] = {
            "custom": {
                "module": "autoopt_pipeline.orchestration.postgres_storage",
                "class": "ReusingPostgresStorage",
                "config": {"postgres_url": postgres_url},
            }
        }
        path.write_text(yaml.safe_dump(document))


@contextmanager
def postgres(processes: Processes, folder: Path) -> Generator[str | None]:
    """A Postgres server of our own; the URL of its database, or None where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    server = str(found[-1]) if found else shutil.which("postgres")
    if server is None:
        yield None
        return
    folder.mkdir(parents=True)
    prefix: list[str] = []
    if os.geteuid() == 0:  # which Postgres refuses
        shutil.chown(folder, "postgres", "postgres")
        prefix = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    data, port = folder / "data", free_port()
    initdb = str(Path(server).with_name("initdb"))
    subprocess.run(  # noqa: S603
        [*prefix, initdb, "-D", str(data), "-U", "bench", "--auth=trust", "--no-sync"],
        check=True,
        capture_output=True,
        cwd=folder,
    )
    command = [*prefix, server, "-D", str(data), "-p", str(port), "-h", LOOPBACK, "-k", str(folder)]
    processes.start("postgres", command, env={}, cwd=folder)
    yield f"postgresql://bench@{LOOPBACK}:{port}/postgres"


def own_database(url: str, name: str) -> str:
    """A database of that name, for a Dagster instance has one to itself. Waits until the server answers."""
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            connection = psycopg2.connect(url)
            break
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    connection.close()
    return f"{url.rpartition('/')[0]}/{name}"
