"""Asking the stand-in for several outputs."""

from typing import Any, Literal

import dspy
from dspy.signatures.signature import make_signature

from autoopt_pipeline.lm.adapters import AnswerAdapter
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.tenants.config import LMSettings

AGENTS = ("search_agent", "summary_agent", "report_agent")
Agent = Literal["search_agent", "summary_agent", "report_agent"]
PLAN: dict[str, tuple[Any, Any]] = {
    "query": (str, dspy.InputField()),
    "available": (list[str], dspy.InputField()),
    "agents": (list[Agent], dspy.OutputField()),
    "pattern": (Literal["sequential", "parallel"], dspy.OutputField()),
    "confidence": (float, dspy.OutputField()),
}
PLANS = [
    ("find the poster and sum it up", ["search_agent", "summary_agent"], "sequential"),
    ("find the invoice and sum it up", ["search_agent", "summary_agent"], "sequential"),
    ("sum up sales while you chart the costs", ["summary_agent", "report_agent"], "parallel"),
    ("sum up churn while you chart the travel", ["summary_agent", "report_agent"], "parallel"),
]
FUSION: dict[str, tuple[Any, Any]] = {
    "query": (str, dspy.InputField()),
    "fuse": (Literal["fuse", "single"], dspy.OutputField()),
    "primary": (Literal["text", "video", "audio"], dspy.OutputField()),
    "secondary": (Literal["text", "video", "audio", "none"], dspy.OutputField()),
    "confidence": (float, dspy.OutputField()),
}
FUSIONS = [
    ("the webcast and its transcript", "fuse", "video", "text"),
    ("the webcast and its soundtrack", "fuse", "video", "audio"),
    ("the webcast and its transcript again", "fuse", "video", "text"),
    ("only a ringtone", "single", "audio", "none"),
    ("only a jingle", "single", "audio", "none"),
]


def ask(
    fields: dict[str, tuple[Any, Any]],
    demos: list[dict[str, Any]],
    instructions: str = "Decide.",
    adapter: dspy.Adapter | None = None,
    **inputs: Any,
) -> dspy.Prediction:
    predict = dspy.Predict(make_signature(dict(fields), instructions))
    predict.demos = [dspy.Example(**demo) for demo in demos]
    lm = metered_lm(LMSettings(model="stand-in"), Meter(10, 10**9)).lm
    with dspy.context(lm=lm, adapter=adapter or AnswerAdapter(), disable_history=True, trace=None):
        return predict(**inputs)


def plans() -> list[dict[str, Any]]:
    return [
        {"query": query, "available": list(AGENTS), "agents": agents, "pattern": pattern, "confidence": 0.9}
        for query, agents, pattern in PLANS
    ]


def fusions() -> list[dict[str, Any]]:
    return [
        {"query": query, "fuse": fuse, "primary": primary, "secondary": secondary, "confidence": 0.9}
        for query, fuse, primary, secondary in FUSIONS
    ]
