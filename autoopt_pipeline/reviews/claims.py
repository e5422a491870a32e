"""Claims: a question that somebody is looking at is not handed to somebody else for a while."""

import hashlib
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import StoredRecord
from autoopt_pipeline.tenant_id import safe_name

CLAIMED_FOR = timedelta(minutes=3)
"""A reviewer who has not answered by then has gone; the question is free again."""


class Claim(StoredRecord):
    """Who looks at a question, and until when nobody else gets it (UTC)."""

    reviewer: str
    until: datetime


def claim(files: ObjectStore, tenant_id: str, module: str, span_id: str, reviewer: str) -> bool:
    """Claim a question. Return False if somebody else looks at it now."""
    path, now = _path(tenant_id, module, span_id), datetime.now(UTC)
    content = Claim(reviewer=reviewer, until=now + CLAIMED_FOR).model_dump_json().encode()
    if files.create(path, content):
        return True
    try:
        held = Claim.model_validate_json(files.read(path) or b"")
    except ValidationError:
        held = None
    if held and held.reviewer != reviewer and now < held.until <= now + CLAIMED_FOR:
        return False
    files.replace(path, content)
    return True


def release(files: ObjectStore, tenant_id: str, module: str, span_id: str) -> None:
    """Give a question back, because it was answered or left."""
    files.delete(_path(tenant_id, module, span_id))


def _path(tenant_id: str, module: str, span_id: str) -> str:
    name = hashlib.sha256(span_id.encode()).hexdigest()[:16]
    return f"{safe_name(tenant_id)}/{module}/review_claims/{name}.json"
