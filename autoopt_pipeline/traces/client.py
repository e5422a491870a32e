"""The only adapter to Phoenix: GraphQL for counts (REST has none), Phoenix's client for spans and annotations.

GraphQL is the private API of Phoenix's UI, so all its queries are in this file, with contract tests against a real
server.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar, cast

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_random_exponential

from autoopt_pipeline.errors import PhoenixRefused, PhoenixUnavailable
from autoopt_pipeline.http_errors import is_transient
from autoopt_pipeline.modules.spec import Annotation, LoggedDecision
from autoopt_pipeline.secrets import protect, protect_address, scrub
from autoopt_pipeline.span_contract import NewAnnotation, SpanContract, span_filter
from autoopt_pipeline.traces.timeouts import AS_CONFIGURED, Patience, Silence
from autoopt_pipeline.urls import without_login, without_secrets

if TYPE_CHECKING:
    from phoenix.client import Client
    from phoenix.client.__generated__.v1 import SpanAnnotationData
    from phoenix.client.types.spans import SpanQuery

# Phoenix rejects GraphQL documents with more aliases.
ALIASES_PER_DOCUMENT = 50

# Projects or spans per request. Phoenix's own default limits would silently drop the rest.
PAGE = 1000

# Decisions per data frame request at most. Half as many are expected, which take the thread that answers 0.1 s.
SPANS_PER_READ = 20_000

# Parts into which a window is divided before it is read. A part with more is divided when it is found to have more, so
# that a count that is too large does not make thousands of requests.
_MOST_PARTS = 100

# Older servers answer with "an unexpected error occurred" and no cause.
OLDEST_PHOENIX = (17, 17)

SUPPORTED_PHOENIX = "Phoenix 17.17 to 20"

_VERSION_HEADER = "x-phoenix-server-version"
_ATTEMPTS = 3
_NAMES = 10
_PAGES = 10
_TOTALS = "id name startTime endTime spanAnnotationNameCounts{name count}"

_T = TypeVar("_T")


@dataclass(frozen=True)
class Project:
    """A Phoenix project with its number of span annotations by name.

    `oldest` and `newest` bound the start times of its traces, rounded to the minute: no trace starts before `oldest`,
    or at or after `newest`. None without traces.
    """

    id: str
    name: str
    oldest: datetime | None
    newest: datetime | None
    annotations: Mapping[str, int]


@dataclass(frozen=True)
class CountRequest:
    """Spans of one name in one project that started in [start, end), UTC."""

    project_id: str
    span_name: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Server:
    """A Phoenix server's description. `clock` is its time and `asked_at` ours, both UTC and at the same moment."""

    version: str | None
    clock: datetime | None
    asked_at: datetime


class Phoenix:
    """Access to one Phoenix server. Every method raises `PhoenixUnavailable` or `PhoenixRefused`.

    `endpoint` is the address without a password, for display; `base_url` includes it. With a limited `patience`, a
    server that has not answered once is not asked again until it does.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30,
        patience: Patience = AS_CONFIGURED,
    ) -> None:
        self.base_url = endpoint.rstrip("/")
        self.endpoint = without_secrets(self.base_url)
        self._patience = patience
        self._timeout = min(timeout_seconds, patience.seconds or timeout_seconds)
        # Reading thousands of spans takes the server longer than counting.
        self._reading_timeout = int(max(self._timeout, 20 if patience.seconds else 60))
        self._silence = Silence(self._answers) if patience.seconds else None
        protect(api_key)
        protect_address(endpoint)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            address, login = without_login(self.base_url)
            self._http = httpx.Client(
                base_url=address,
                auth=login,
                headers=headers,
                timeout=self._timeout,
                event_hooks={"response": [self._refuse_old]},
            )
        except (httpx.InvalidURL, ValueError):
            # The error may quote a part of the password.
            raise PhoenixRefused(
                f"Phoenix endpoint {self.endpoint!r} is no address",
                "set AUTOOPT_PHOENIX_ENDPOINT to http://host:port, special characters of a password as %XX",
            ) from None

    def about(self) -> Server:
        """Return the server's description. Tests all permissions that runs need, without changing anything.

        Raises `PhoenixRefused` also if the key is rejected, or may not read spans or write.
        """
        with self._errors("its projects"):
            response = self._response("GET", "/v1/projects", params={"limit": 1})
            asked_at = datetime.now(UTC)
            projects = self._data(response)["data"]
            self._graphql_projects([project["name"] for project in projects] or [""])
            for project in projects:
                self._graphql_counts([CountRequest(project["id"], "", asked_at, asked_at)])
            for project in projects:  # a window in the future, so it has no spans
                query = {"queries": [{"select": {}}], "start_time": asked_at.isoformat(), "limit": 1}
                self._response("POST", "/v1/spans", params={"project_name": project["name"]}, json=query)
            self._response("POST", "/v1/span_annotations", json={"data": []})
            date = response.headers.get("date")
            return Server(
                response.headers.get(_VERSION_HEADER), parsedate_to_datetime(date) if date else None, asked_at
            )

    def projects(self, names: Sequence[str]) -> dict[str, Project]:
        """Return those of these projects that exist, by name.

        Requests them by name, fifty per document, because the cost of a list grows with the number of all projects.
        """
        wanted = dict.fromkeys(names)
        existing: dict[str, Project] = {}
        with self._errors("projects"):
            for batch in _batches([*wanted], ALIASES_PER_DOCUMENT):
                existing |= self._graphql_projects(batch)
        return existing

    def project(self, name: str) -> Project | None:
        """Return one project, or None if it does not exist."""
        return self.projects([name]).get(name)

    def count(self, requests: Sequence[CountRequest]) -> dict[CountRequest, int]:
        """Count spans for each request, fifty per document. Equal requests are sent once."""
        distinct = list(dict.fromkeys(requests))
        counted: dict[CountRequest, int] = {}
        with self._errors("counts"):
            for batch in _batches(distinct, ALIASES_PER_DOCUMENT):
                counted.update(zip(batch, self._graphql_counts(batch), strict=True))
        return counted

    def other_span_names(
        self, project_id: str, known: Collection[str], *, start: datetime, end: datetime
    ) -> dict[str, int]:
        """Return names outside `known`, with their number of spans in [start, end).

        Covers the ten most frequent of the newest thousand such spans.
        """
        with self._errors("span names"):
            node = self._graphql(
                "query($id:ID!,$n:Int!,$tr:TimeRange,$f:String){node(id:$id){...on Project{spans("
                "first:$n,timeRange:$tr,filterCondition:$f,sort:{col:startTime,dir:desc}){edges{node{name}}}}}}",
                {
                    "id": project_id,
                    "n": PAGE,
                    "tr": {"start": start.isoformat(), "end": end.isoformat()},
                    "f": f"name not in {json.dumps(sorted(known))}",
                },
            )["node"]
            newest = Counter(edge["node"]["name"] for edge in node["spans"]["edges"])
        names = [name for name, _ in newest.most_common(_NAMES)]
        counts = self.count([CountRequest(project_id, name, start, end) for name in names])
        return {request.span_name: count for request, count in counts.items()}

    def attributes_of(
        self, project: str, span_name: str, *, start: datetime, end: datetime
    ) -> dict[str, dict[str, Any]]:
        """Return the attributes of a project's spans of one name that started in [start, end), by span id.

        They are nested objects, as Phoenix stores them. Returns the newest of more than ten thousand spans, and nothing
        without the project.
        """
        attributes: dict[str, dict[str, Any]] = {}
        after: str | None = None
        with self._errors(f"project {project}"):
            for _ in range(_PAGES):
                found = self._graphql(
                    "query($name:String!,$n:Int!,$after:String,$tr:TimeRange,$f:String){getProjectByName(name:$name)"
                    "{spans(first:$n,after:$after,timeRange:$tr,filterCondition:$f,sort:{col:startTime,dir:desc})"
                    "{edges{node{spanId attributes}} pageInfo{hasNextPage endCursor}}}}",
                    {
                        "name": project,
                        "n": PAGE,
                        "after": after,
                        "tr": {"start": start.isoformat(), "end": end.isoformat()},
                        "f": span_filter(span_name),
                    },
                )["getProjectByName"]
                if not found:
                    break
                nodes = [edge["node"] for edge in found["spans"]["edges"]]
                attributes |= {node["spanId"]: json.loads(node["attributes"]) for node in nodes}
                if not found["spans"]["pageInfo"]["hasNextPage"]:
                    break
                after = found["spans"]["pageInfo"]["endCursor"]
        return attributes

    def decisions(
        self, project: Project, contract: SpanContract, *, start: datetime, end: datetime, also: Sequence[str] = ()
    ) -> list[LoggedDecision]:
        """Return all decisions of a project that started in [start, end), oldest first, with their annotations.

        Reads only the contract's columns and the attributes in `also`, page by page, so that the server stays
        responsive. Nothing is left out. Annotations are only requested if the project has any of that name.
        """
        columns = (*contract.columns, *also)
        with self._errors(f"project {project.name}"):
            rows = self._read_rows(project, contract, columns, start, end)
            annotations = self._read_annotations(project, contract, [row["span_id"] for row in rows])
        return [_decision(row, columns, annotations.get(row["span_id"], ())) for row in rows]

    def annotations(
        self, project: Project, contract: SpanContract, span_ids: Sequence[str]
    ) -> dict[str, tuple[Annotation, ...]]:
        """Return the annotations of these spans with the contract's name. Spans without any are missing."""
        with self._errors(f"project {project.name}"):
            return self._read_annotations(project, contract, span_ids)

    def annotate(self, annotations: Sequence[NewAnnotation]) -> None:
        """Write span annotations. They replace those with the same span, name and identifier."""
        with self._errors("annotations"):
            for batch in _batches(annotations, PAGE):
                self._client().spans.log_span_annotations(
                    span_annotations=[cast("SpanAnnotationData", annotation.as_json()) for annotation in batch],
                    sync=True,  # otherwise Phoenix silently drops annotations of unknown spans
                )

    @contextmanager
    def client(self, subject: str) -> Generator["Client", None, None]:
        """Open Phoenix's client for datasets and experiments. Its errors become ours and name `subject`."""
        from phoenix.client.exceptions import PhoenixException
        from phoenix.client.resources.datasets import DatasetUploadError

        with self._errors(subject):
            try:
                yield self._client()
            except (DatasetUploadError, PhoenixException) as e:
                if isinstance(e.__cause__, httpx.HTTPStatusError):
                    raise e.__cause__ from None
                raise PhoenixRefused(f"Phoenix {self.endpoint}: {subject}: {e}", "check Phoenix's version") from None

    def dataset_id(self, name: str) -> str | None:
        """Return the id of the dataset with exactly that name, or None."""
        with self._errors(f"dataset {name}"):
            datasets = self._json("GET", "/v1/datasets", params={"name": name})["data"]
            return datasets[0]["id"] if datasets else None

    def delete_dataset(self, dataset_id: str) -> None:
        """Delete a dataset with all its versions and experiments."""
        with self._errors(f"dataset {dataset_id}"):
            self._http.delete(f"/v1/datasets/{dataset_id}").raise_for_status()

    def _read_rows(
        self, project: Project, contract: SpanContract, columns: Sequence[str], start: datetime, end: datetime
    ) -> list[dict[str, Any]]:
        from phoenix.client.types.spans import SpanQuery

        query = (
            SpanQuery()
            .select("context.span_id", "context.trace_id", "start_time", "status_code", *columns)
            .where(contract.filter)
        )
        window = CountRequest(project.id, contract.span_name, start, end)
        [expected] = self._graphql_counts([window])
        if not expected:
            return []
        parts = _equal_parts(window, project, min(math.ceil(2 * expected / SPANS_PER_READ), _MOST_PARTS))
        rows = [row for part in parts for row in self._read_window(query, project.name, part, SPANS_PER_READ)]
        if len(rows) < expected:  # missing rows would count as learnt from
            raise PhoenixUnavailable(
                f"Phoenix {self.endpoint}: project {project.name}: {expected} spans are counted and {len(rows)} given",
                "see the server's log",
            )
        return sorted(rows, key=lambda row: (row["start_time"], row["span_id"]))

    def _read_window(self, query: "SpanQuery", project: str, window: CountRequest, limit: int) -> list[dict[str, Any]]:
        """Return all rows of a window. If there are `limit` or more, read its halves.

        Phoenix returns selected columns in no order, so the rows beyond a limit cannot be requested in another way.
        """
        frame = self._client().spans.get_spans_dataframe(
            project_identifier=project,
            query=query,
            start_time=window.start,
            end_time=window.end,
            limit=limit,
            timeout=self._reading_timeout,
        )
        if len(frame) < limit:
            ids = frame["context.span_id"] if "context.span_id" in frame.columns else frame.index
            return [
                {str(name): value for name, value in row.items()} | {"span_id": str(span_id)}
                for span_id, row in zip(ids, frame.to_dict("records"), strict=True)
            ]
        middle = window.start + (window.end - window.start) / 2
        if middle in (window.start, window.end):  # more spans at one moment than the limit
            return self._read_window(query, project, window, 2 * limit)
        halves = (replace(window, end=middle), replace(window, start=middle))
        whole, *counts = self._graphql_counts([window, *halves])
        if sum(counts) >= 2 * whole >= 2 * limit:  # halving would never end
            raise PhoenixRefused(
                f"Phoenix {self.endpoint}: project {project}: its counts do not add up: {whole} spans in a window, "
                f"{counts[0]} and {counts[1]} in its halves",
                "check its version",
            )
        return [row for half in halves for row in self._read_window(query, project, half, limit)]

    def _read_annotations(
        self, project: Project, contract: SpanContract, span_ids: Sequence[str]
    ) -> dict[str, tuple[Annotation, ...]]:
        # One request per hundred spans, slowest without annotations.
        if contract.annotation not in project.annotations or not span_ids:
            return {}
        annotations: dict[str, list[Annotation]] = {}
        for item in self._client().spans.get_span_annotations(
            project_identifier=project.name,
            span_ids=span_ids,
            include_annotation_names=[contract.annotation],
            timeout=self._reading_timeout,
        ):
            result = item.get("result") or {}
            annotations.setdefault(item["span_id"], []).append(
                Annotation(
                    kind=item["annotator_kind"],
                    label=result.get("label"),
                    metadata=dict(item.get("metadata") or {}),
                    updated_at=datetime.fromisoformat(str(item["updated_at"])),
                    made_in_ui=item["source"] == "APP",
                    score=result.get("score"),
                )
            )
        return {span_id: tuple(listed) for span_id, listed in annotations.items()}

    def _graphql_projects(self, batch: Sequence[str]) -> dict[str, Project]:
        declared = ",".join(f"$n{i}:String!" for i in range(len(batch)))
        fields = " ".join(f"p{i}:getProjectByName(name:$n{i}){{{_TOTALS}}}" for i in range(len(batch)))
        data = self._graphql(f"query({declared}){{{fields}}}", {f"n{i}": name for i, name in enumerate(batch)})
        nodes = [node for i in range(len(batch)) if (node := data[f"p{i}"])]
        return {
            node["name"]: Project(
                node["id"],
                node["name"],
                _moment(node["startTime"]),
                _moment(node["endTime"]),
                {row["name"]: row["count"] for row in node["spanAnnotationNameCounts"]},
            )
            for node in nodes
        }

    def _graphql_counts(self, batch: Sequence[CountRequest]) -> list[int]:
        variables: dict[str, Any] = {}
        names = []
        for i, request in enumerate(batch):
            variables[f"id{i}"] = request.project_id
            variables[f"tr{i}"] = {"start": request.start.isoformat(), "end": request.end.isoformat()}
            variables[f"f{i}"] = span_filter(request.span_name)
            names.append(f"p{i}")
        declared = ",".join(f"$id{i}:ID!,$tr{i}:TimeRange,$f{i}:String" for i in range(len(batch)))
        fields = " ".join(
            f"p{i}:node(id:$id{i}){{...on Project{{recordCount(timeRange:$tr{i},filterCondition:$f{i})}}}}"
            for i in range(len(batch))
        )
        data = self._graphql(f"query({declared}){{{fields}}}", variables)
        return [data[name]["recordCount"] for name in names]

    def _graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._json("POST", "/graphql", json={"query": query, "variables": dict(variables)})
        if errors := answer.get("errors"):
            message = scrub(str(errors[0].get("message")))[:300]
            raise PhoenixRefused(
                f"Phoenix {self.endpoint}: {message}", f"see the server's log, and use {SUPPORTED_PHOENIX}"
            )
        return answer["data"]

    def _json(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        with self._errors(path):
            return self._data(self._response(method, path, **kwargs))

    def _data(self, response: httpx.Response) -> dict[str, Any]:
        """Return the response's body, which has `data` unless Phoenix refused."""
        try:
            answer = response.json()
            if answer.get("data") is None and _VERSION_HEADER not in response.headers:
                raise self._no_phoenix(response)
        except (ValueError, AttributeError):
            if _VERSION_HEADER not in response.headers:
                raise self._no_phoenix(response) from None
            raise
        return answer

    def _no_phoenix(self, response: httpx.Response) -> PhoenixRefused:
        return PhoenixRefused(
            f"{self.endpoint} answers HTTP {response.status_code}, and is not Phoenix",
            "set AUTOOPT_PHOENIX_ENDPOINT to Phoenix's own address",
        )

    def _refuse_old(self, response: httpx.Response) -> None:
        version = response.headers.get(_VERSION_HEADER, "")
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_PHOENIX:
            raise PhoenixRefused(
                f"Phoenix {self.endpoint}: Phoenix {version[:20]} is too old", f"use {SUPPORTED_PHOENIX}"
            )

    def _response(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        with self._errors(path):
            for attempt in Retrying(
                stop=stop_after_attempt(_ATTEMPTS) | stop_before_delay(self._timeout),
                wait=wait_random_exponential(multiplier=0.2, max=2),
                retry=retry_if_exception(is_transient),
                reraise=True,
            ):
                with attempt:
                    response = self._http.request(method, path, **kwargs)
                    response.raise_for_status()
            return response

    def _answers(self) -> bool:
        try:
            self._http.get("/readyz")
        except httpx.TransportError:
            return False
        except (httpx.HTTPError, PhoenixRefused):
            return True  # it answers with nonsense, which its caller reports
        return True

    def _client(self) -> "Client":
        from phoenix.client import Client

        return Client(base_url=str(self._http.base_url), http_client=self._http)

    @contextmanager
    def _errors(self, subject: str) -> Generator[None, None, None]:
        """Translate errors of the connection and of Phoenix."""
        if self._silence:
            self._silence.check()
        try:
            with self._patience.waiting(f"waiting for Phoenix at {self.endpoint} ..."):
                yield
        except httpx.HTTPStatusError as e:
            raise self._refusal(e, subject) from e
        except httpx.TransportError as e:
            silent = PhoenixUnavailable(
                f"Phoenix {self.endpoint} does not answer: {type(e).__name__} {e}",
                "check AUTOOPT_PHOENIX_ENDPOINT and that Phoenix is up",
            )
            if self._silence:
                self._silence.noticed(silent)
            raise silent from e
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise PhoenixRefused(
                f"Phoenix {self.endpoint}: {subject}: the answer is not understood ({type(e).__name__})",
                "check that AUTOOPT_PHOENIX_ENDPOINT is Phoenix's own address, and its version",
            ) from e

    def _refusal(self, error: httpx.HTTPStatusError, subject: str) -> PhoenixRefused | PhoenixUnavailable:
        status = error.response.status_code
        if status in {401, 403}:
            return PhoenixRefused.of_key(self.endpoint, status, error.response.text)
        if is_transient(error):
            return PhoenixUnavailable(f"Phoenix {self.endpoint}: {subject}: HTTP {status}", "see the server's log")
        if _VERSION_HEADER not in error.response.headers:
            return self._no_phoenix(error.response)
        if status == 404:
            return PhoenixRefused(f"Phoenix {self.endpoint}: {subject} does not exist", "send its traces there first")
        return PhoenixRefused(
            f"Phoenix {self.endpoint}: {subject}: HTTP {status} {scrub(error.response.text)[:200]}",
            "see the server's log",
        )


def _decision(row: dict[str, Any], columns: Sequence[str], annotations: tuple[Annotation, ...]) -> LoggedDecision:
    return LoggedDecision(
        span_id=row["span_id"],
        trace_id=str(row.get("context.trace_id")),
        time=row["start_time"].to_pydatetime(),
        failed=row.get("status_code") == "ERROR",  # status of a successful span is UNSET as often as OK
        attributes={name: row.get(name) for name in columns},
        annotations=annotations,
    )


def _equal_parts(window: CountRequest, project: Project, count: int) -> list[CountRequest]:
    """Divide a window where the project has traces into equal parts. The first and the last one have the rest.

    Reading a part costs Phoenix on SQLite a scan of the whole project, and counting it another, so a few large parts
    are read uncounted.
    """
    first, last = max(window.start, project.oldest or window.start), min(window.end, project.newest or window.end)
    inner = [first + (last - first) * number / count for number in range(1, count)] if first < last else []
    edges = [window.start, *inner, window.end]
    return [replace(window, start=start, end=end) for start, end in pairwise(edges)]


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _batches(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
