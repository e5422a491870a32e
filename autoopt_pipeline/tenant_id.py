"""Tenant ids, and a safe form of them for paths and names.

An id is `acme` or `org:tenant`. The raw id is the Dagster partition key and part of the Phoenix project name. Paths and
Kubernetes names use `safe_name`.
"""

import hashlib
import re

from autoopt_pipeline.errors import InvalidTenantId

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?=[A-Za-z0-9])){0,62}"
_TENANT_ID = re.compile(rf"{_PART}(?::{_PART})?")
_ALREADY_SAFE = re.compile(r"[a-z0-9](?:[a-z0-9]|-(?!-)){0,46}(?<!-)")


def validate_tenant_id(tenant_id: str) -> str:
    """Return the id unchanged, or raise `InvalidTenantId` with the id and the rule."""
    if isinstance(tenant_id, str) and _TENANT_ID.fullmatch(tenant_id):
        return tenant_id
    shown = repr(tenant_id)
    raise InvalidTenantId(
        f"invalid tenant id {shown if len(shown) <= 60 else shown[:57] + '...'}",
        "use 'acme' or 'org:tenant': each part starts with a letter or digit, has at most 63 letters, "
        "digits, '-', '_' or single dots inside",
    )


def safe_name(tenant_id: str) -> str:
    """Convert an id for use in paths, object keys and Kubernetes names and labels (at most 63 characters).

    Lower-case ids stay as they are. All others get a double hyphen and a hash of the raw id. No id of the first kind
    contains a double hyphen, so two tenants never share a name.
    """
    validate_tenant_id(tenant_id)
    if _ALREADY_SAFE.fullmatch(tenant_id):
        return tenant_id
    words = re.sub(r"[^a-z0-9]+", "-", tenant_id.lower()).strip("-")[:40].strip("-")
    return f"{words}--{hashlib.sha256(tenant_id.encode()).hexdigest()[:16]}"
