from datetime import UTC, datetime

from autoopt_pipeline.registry.records import DrawnTrace, StoredAnswer
from autoopt_pipeline.reviews.queue import ReviewQueue, shortest_first
from autoopt_pipeline.traces.client import Project

AT = datetime(2026, 1, 1, tzinfo=UTC)


def queue(tenant: str, waiting: int, favoured: float = 0.0) -> ReviewQueue:
    said = StoredAnswer(values=None, confidence=None)
    traces = tuple(
        DrawnTrace(span_id=f"s{k}", trace_id=f"t{k}", time=AT, alike=False, incumbent=said, candidate=said)
        for k in range(waiting)
    )
    versions = {trace.span_id: "v" for trace in traces}
    return ReviewQueue(tenant, "routing", "v", versions, AT, traces, {}, favoured, Project("1", tenant, None, None, {}))


def test_the_shortest_queue_comes_first_and_what_a_judge_finds_worse_last() -> None:
    queues = [queue("a", 9), queue("b", 5), queue("c", 1, favoured=-3.0), queue("d", 7, favoured=4.0)]
    assert [found.tenant_id for found in shortest_first(queues)] == ["b", "d", "a", "c"]
