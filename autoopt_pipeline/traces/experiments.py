"""Publishes program comparisons in Phoenix: a holdout as a dataset version with two experiments.

Each tenant's module has one dataset. Each of its versions is one whole holdout; an example's id is its span id, and
equal holdouts share a version. An answer is one experiment run with one evaluation, named "score".
"""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from autoopt_pipeline.errors import PhoenixRefused
from autoopt_pipeline.tenant_id import safe_name
from autoopt_pipeline.traces.client import Phoenix

if TYPE_CHECKING:
    from phoenix.client import Client
    from phoenix.client.resources.datasets import Dataset

# Name of the evaluations.
SCORE = "score"

# Metadata key that distinguishes our experiments from those of people on the same dataset.
_RUN_ID = "autoopt_run_id"

# Phoenix takes runs and evaluations one by one, 10 ms of its single thread each. Four at once hide the waiting for
# Postgres (8 s instead of 11 s for 300 rows). SQLite gains nothing, and more do not help.
_REQUESTS_AT_ONCE = 4

_TIMEOUT_SECONDS = 60

_VERSIONS_TO_TRY = 3


@dataclass(frozen=True)
class ProgramAnswer:
    """A program's answer by output field (None if invalid), with its score and confidence from 0 to 1."""

    values: Mapping[str, Any] | None
    score: float
    confidence: float | None = None


@dataclass(frozen=True)
class ComparedRow:
    """One holdout example with its right values by output field, and the answers of both programs."""

    span_id: str
    trace_id: str
    inputs: Mapping[str, str]
    right: Mapping[str, Any]
    incumbent: ProgramAnswer
    candidate: ProgramAnswer


@dataclass(frozen=True)
class Published:
    """A published comparison. `compare_url` shows both programs side by side, the incumbent first."""

    dataset_id: str
    dataset_version_id: str
    compare_url: str
    dataset_url: str


def dataset_name(tenant_id: str, module: str) -> str:
    """Return the dataset's name for a tenant's module. It is unique, because neither part can contain a dot."""
    return f"autoopt.{safe_name(tenant_id)}.{module}.holdout"


def publish_comparison(  # noqa: PLR0913 - keyword-only facts of one comparison
    phoenix: Phoenix,
    tenant_id: str,
    module: str,
    rows: Sequence[ComparedRow],
    *,
    incumbent: str,
    candidate: str,
    verdict: str,
    run_id: str,
    keep: int = 10,
) -> Published:
    """Publish the answers of two programs to one holdout. Takes 8 to 12 s for 300 rows.

    Publishing again for the same run replaces its earlier comparison. Only the newest `keep` comparisons stay;
    experiments of others are never changed. Rows need distinct span ids.

    Raises `PhoenixUnavailable` or `PhoenixRefused`. Then Phoenix may have a part of the comparison until it is
    published again, or is deleted as too old.
    """
    name = dataset_name(tenant_id, module)
    with phoenix.client(f"dataset {name}") as client:
        dataset = _upload(client, name, f"Held-out traces of tenant {tenant_id}, module {module}", rows)
        about = {"tenant": tenant_id, "module": module, "verdict": verdict, _RUN_ID: run_id}
        experiment_ids = [
            _publish_program(client, dataset, role, {**about, "role": role, "version": version}, answers)
            for role, version, answers in (
                ("incumbent", incumbent, {row.span_id: row.incumbent for row in rows}),
                ("candidate", candidate, {row.span_id: row.candidate for row in rows}),
            )
        ]
        _delete_superseded(client, dataset.id, run_id, experiment_ids, keep)
    query = urlencode([("experimentId", experiment_id) for experiment_id in experiment_ids])
    return Published(
        dataset_id=dataset.id,
        dataset_version_id=dataset.version_id,
        compare_url=f"{phoenix.endpoint}/datasets/{dataset.id}/compare?{query}",
        dataset_url=f"{phoenix.endpoint}/datasets/{dataset.id}/experiments",
    )


def forget_in_datasets(
    phoenix: Phoenix,
    tenant_id: str,
    module: str,
    *,
    span_ids: Collection[str] = (),
    queries: Collection[str] = (),
) -> int:
    """Delete the text of traces from all versions of a module's dataset, permanently.

    Returns the number of examples from one of the spans, or with one of the queries as input. If there are any, the
    whole dataset is deleted, because Phoenix keeps the text of deleted examples in old versions. That also deletes all
    published comparisons of the module and what people ran on that dataset; the next publication creates a new one.
    Manifests, verdicts and spans are not changed. A database file may keep deleted bytes in free pages until it is
    vacuumed.

    Raises `PhoenixUnavailable` or `PhoenixRefused`. Then call it again, because some text may remain.
    """
    name = dataset_name(tenant_id, module)
    dataset_id = phoenix.dataset_id(name)
    if dataset_id is None:
        return 0
    with phoenix.client(f"dataset {name}") as client:
        versions = client.datasets.get_dataset_versions(dataset=dataset_id, limit=10**6, timeout=_TIMEOUT_SECONDS)
        affected = {
            example["id"]
            for version in versions
            for example in _version(client, dataset_id, version["version_id"]).examples
            if example["id"] in span_ids or not set(queries).isdisjoint(map(str, example["input"].values()))
        }
        if affected:
            # One by one, because deleting the dataset would leave their hidden projects behind and make them visible.
            for experiment in client.experiments.list(dataset_id=dataset_id, timeout=_TIMEOUT_SECONDS):
                client.experiments.delete(experiment_id=experiment["id"], delete_project=True)
            phoenix.delete_dataset(dataset_id)
    return len(affected)


def _upload(client: "Client", name: str, description: str, rows: Sequence[ComparedRow]) -> "Dataset":
    """Return the dataset version with exactly these rows; create one unless the newest has them already.

    If nothing is new, Phoenix returns the version with the latest time. On SQLite, with times in whole seconds, that
    may not be the one it compared with, so we compare the result ourselves.
    """
    wanted = {
        row.span_id: {
            "input": dict(row.inputs),
            "output": json.loads(json.dumps(dict(row.right))),
            "metadata": {"trace_id": row.trace_id},
        }
        for row in rows
    }
    uploaded = client.datasets.create_dataset(  # a new version replaces the contents of a dataset of that name
        name=name,
        examples=[
            {"id": row.span_id, "span_id": row.span_id, **wanted[row.span_id]}  # Phoenix links to the trace
            for row in rows
        ],
        dataset_description=description,
        timeout=_TIMEOUT_SECONDS,
    )
    if _holds(uploaded, wanted):
        return uploaded
    for version in client.datasets.get_dataset_versions(
        dataset=uploaded.id, limit=_VERSIONS_TO_TRY, timeout=_TIMEOUT_SECONDS
    ):
        newest = _version(client, uploaded.id, version["version_id"])
        if _holds(newest, wanted):
            return newest
    raise PhoenixRefused(f"dataset {name}: no version holds what was uploaded", "publish it again")


def _version(client: "Client", dataset_id: str, version_id: str) -> "Dataset":
    return client.datasets.get_dataset(dataset=dataset_id, version_id=version_id, timeout=_TIMEOUT_SECONDS)


def _holds(dataset: "Dataset", wanted: Mapping[str, Mapping[str, Any]]) -> bool:
    held = {
        example["id"]: {part: example[part] for part in ("input", "output", "metadata")} for example in dataset.examples
    }
    return held == wanted


def _publish_program(
    client: "Client", dataset: "Dataset", role: str, metadata: Mapping[str, str], answers: Mapping[str, ProgramAnswer]
) -> str:
    """Publish one program's answers, by span id, as an experiment on exactly this dataset version. Returns its id."""
    experiment = client.experiments.create(
        dataset_id=dataset.id,
        dataset_version_id=dataset.version_id,
        experiment_name=f"{role} {metadata['version']}",
        experiment_description=f"{metadata['verdict']}, run {metadata[_RUN_ID]}",
        experiment_metadata=metadata,
        timeout=_TIMEOUT_SECONDS,
    )
    now = datetime.now(UTC)

    def publish(example: Mapping[str, Any]) -> None:
        answer = answers[example["id"]]
        run = client.experiments.log_run(
            experiment_id=experiment["id"],
            dataset_example_id=example["node_id"],
            output=_output(answer),
            error="no valid answer" if answer.values is None else None,
            start_time=now,
            end_time=now,
            timeout=_TIMEOUT_SECONDS,
        )
        client.experiments.log_evaluation(
            experiment_run_id=run["id"],
            name=SCORE,
            annotator_kind="CODE",
            score=answer.score,
            label=_label(answer.score),
            timeout=_TIMEOUT_SECONDS,
        )

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        for _ in pool.map(publish, dataset.examples):  # the first error cancels the rest
            pass
    return experiment["id"]


def _output(answer: ProgramAnswer) -> dict[str, Any] | None:
    if answer.values is None:
        return None
    return {**answer.values, **({} if answer.confidence is None else {"confidence": answer.confidence})}


def _label(score: float) -> str:
    if score >= 1:
        return "right"
    return "partly" if score > 0 else "wrong"


def _delete_superseded(client: "Client", dataset_id: str, run_id: str, fresh: Collection[str], keep: int) -> None:
    """Delete earlier publications of this run, and all comparisons except those of the newest `keep` runs."""
    ours = [
        (experiment["id"], experiment["metadata"][_RUN_ID])
        for experiment in client.experiments.list(dataset_id=dataset_id, timeout=_TIMEOUT_SECONDS)
        if _RUN_ID in experiment["metadata"]
    ]
    newest_first = list(dict.fromkeys(run for _, run in ours))
    for experiment_id, run in ours:
        if run not in newest_first[:keep] or (run == run_id and experiment_id not in fresh):
            client.experiments.delete(experiment_id=experiment_id, delete_project=True)
