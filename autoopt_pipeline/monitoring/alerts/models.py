"""An alert, as every receiver gets it. The webhook's body is this model as JSON (docs/alerts.md)."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from autoopt_pipeline.secrets import scrub
from autoopt_pipeline.text import one_line

MAX_AFFECTED = 20
"""Modules that one alert lists. It counts the others."""

_MAX_CHARS = 500


class Kind(StrEnum):
    UNREACHABLE = "unreachable"
    ROLLED_BACK = "rolled_back"
    QUALITY_FELL = "quality_fell"
    RUN_FAILED = "run_failed"
    FAILING_REPEATEDLY = "failing_repeatedly"
    TEST = "test"


class Affected(BaseModel):
    """A tenant's module that the alert is about."""

    model_config = ConfigDict(frozen=True)

    tenant: str
    module: str
    detail: str = Field("", description="What happened to it, in one line.")
    run_id: str | None = Field(None, description="The Dagster run, where there is one.")
    url: str | None = Field(None, description="Its page in the Dagster UI, where AUTOOPT_DAGSTER_UI_URL is set.")


class Alert(BaseModel):
    """One message. It may arrive twice."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = Field(1, description="Of this schema. It grows when a field changes or goes.")
    id: str = Field(description="A hash of the other fields, so the same when the same message is sent again.")
    kind: Kind
    at: datetime = Field(description="When the newest of it happened, UTC.")
    summary: str = Field(description="What happened, in one line.")
    detail: str = Field("", description="The cause, in one line, and what to do where that is known.")
    affected: tuple[Affected, ...] = Field((), description=f"The first {MAX_AFFECTED} modules that it is about.")
    affected_total: int = Field(0, description="How many modules it is about.")


def make_alert(kind: Kind, at: datetime, summary: str, *, detail: str = "", affected: Sequence[Affected] = ()) -> Alert:
    """An alert of bounded size."""
    alert = Alert(
        id="",
        kind=kind,
        at=at,
        summary=beginning_of(summary),
        detail=beginning_of(detail),
        affected=tuple(affected[:MAX_AFFECTED]),
        affected_total=len(affected),
    )
    return alert.model_copy(update={"id": hashlib.sha256(alert.model_dump_json().encode()).hexdigest()[:16]})


def beginning_of(text: str) -> str:
    """One line of text that anybody may have written."""
    return one_line(scrub(text), length=_MAX_CHARS)
