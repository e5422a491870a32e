"""The demo's person: a script that reviews sample traffic, and knows what is right because it made the traffic."""

from collections.abc import Mapping

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.modules.spec import query_of
from autoopt_pipeline.reviews.answers import CANNOT_TELL, write_review
from autoopt_pipeline.reviews.queue import open_queue, questions

REVIEWER = "the demo's person (a script)"


def review_sample_traffic(
    connections: Connections, tenant_id: str, module: str, right: Mapping[str, Mapping[str, str]]
) -> int:
    """Review all that waits for this module, and return how much. `right` holds answers by normalized query."""
    queue = open_queue(connections, tenant_id, module)
    if queue is None:
        return 0
    field, given = get_module(module).output_field, 0
    for question in questions(connections, queue, queue.waiting):
        answers = right.get(normalize_query(query_of(question.inputs)), {})
        write_review(connections.phoenix, question, answers.get(field, CANNOT_TELL), reviewer=REVIEWER)
        given += 1
    return given
