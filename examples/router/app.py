"""A small service that routes the requests of two tenants, and learns from what people say of its choices.

Start `make up` in another shell, paste its `export` lines, and then:

    uvicorn --app-dir examples/router app:app --port 8000

    curl 'localhost:8000/acme/route?query=where+did+we+put+the+poster&user=marta'
    curl -X POST 'localhost:8000/acme/feedback/DECISION?correction=search_agent'
    curl localhost:8000/status
"""

import os
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import dspy
from opentelemetry.sdk.trace import TracerProvider
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.serving import Decision, Serving, trace_to_phoenix

AGENTS = {
    "acme": {
        "search_agent": "finds things that exist already",
        "summary_agent": "makes long things short",
        "report_agent": "works numbers and comparisons out",
        "support_agent": "helps when something does not work",
    },
    "globex:support": {"search_agent": "finds things", "support_agent": "helps when something does not work"},
}
REMEMBERED = 10_000
"""Decisions that feedback may still come for; a real service keeps them with its own requests."""


def language_model() -> dspy.LM:
    """The model that ROUTER_LM names, or the offline stand-in, which is no language model."""
    name = os.environ.get("ROUTER_LM")
    return dspy.LM(name, cache=False) if name else dspy.LM("stand-in/demo", engine=StandInEngine(), cache=False)


spans = trace_to_phoenix(tracer_provider=TracerProvider())
serving = Serving(lm=language_model(), tracer_provider=spans, review_share=0.5, refresh_seconds=2)
decisions: OrderedDict[str, Decision] = OrderedDict()


async def route(request: Request) -> JSONResponse:
    tenant, query = request.path_params["tenant"], request.query_params.get("query", "")
    if tenant not in AGENTS:
        raise HTTPException(404, f"unknown tenant {tenant[:60]!r}; known: {', '.join(AGENTS)}")
    # While a new version is watched, the same user always meets the same one.
    user = request.query_params.get("user")
    try:
        decision = await serving.adecide(
            tenant, "routing", agents=list(AGENTS[tenant].items()), request_id=user, query=query
        )
    except AutooptError as e:
        raise HTTPException(400, str(e)) from None
    decisions[decision.span_id] = decision
    while len(decisions) > REMEMBERED:
        decisions.popitem(last=False)
    return JSONResponse(
        {
            "decision": decision.span_id,
            "agent": decision.values["agent"],
            "confidence": decision.confidence,
            "version": decision.version or "baseline",
            "please_review": decision.sampled,
        }
    )


async def feedback(request: Request) -> JSONResponse:
    """`correct=true|false`, or `correction=AGENT`. Of decisions drawn for review, reviews may prove a gain."""
    decision = decisions.get(request.path_params["decision"])
    if decision is None or decision.tenant_id != request.path_params["tenant"]:
        raise HTTPException(404, "unknown decision")
    correction = request.query_params.get("correction")
    if correction is not None and correction not in AGENTS[decision.tenant_id]:
        raise HTTPException(400, f"{correction[:60]!r} is no agent of {decision.tenant_id}")
    correct = None if correction else request.query_params.get("correct", "true") == "true"
    serving.feedback(decision, correct=correct, correction=correction, sampled=decision.sampled)
    return JSONResponse({"thanks": True})


async def status(_: Request) -> JSONResponse:
    """What is served, and what is wrong with it."""
    return JSONResponse({"problems": [str(problem) for problem in serving.problems()], "status": str(serving.status())})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncGenerator[None, None]:
    yield
    serving.close()
    spans.shutdown()


app = Starlette(
    routes=[
        Route("/{tenant}/route", route),
        Route("/{tenant}/feedback/{decision}", feedback, methods=["POST"]),
        Route("/status", status),
    ],
    lifespan=lifespan,
)
