"""`autoopt simulate`: sends simulated requests of an application to Phoenix."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from autoopt_pipeline.cli.context import console, open_connections
from autoopt_pipeline.cli.tenants import TenantId
from autoopt_pipeline.devtools.traffic import (
    SAMPLE_AGENTS,
    SyntheticRequest,
    TrafficProfile,
    read_truths,
    sample_truths_for,
    simulate_requests,
)
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.span_contract import project_name
from autoopt_pipeline.tenants.store import read_config


def simulate(
    tenant: TenantId,
    traces: Annotated[int, typer.Option(min=1, help="Requests to send.")] = 400,
    queries: Annotated[Path | None, typer.Option(help="JSON lines of labelled queries to send instead.")] = None,
    query_field: Annotated[str, typer.Option(help="Field of the file that holds the query.")] = "query",
    label_field: Annotated[str, typer.Option(help="Field of the file that holds the right agent.")] = "agent",
    hours: Annotated[float, typer.Option(min=0.0001, help="Past hours over which the requests are spread.")] = 1.0,
    right: Annotated[float, typer.Option(min=0, max=1, help="Fraction of decisions that are right.")] = 0.7,
    reviewed: Annotated[float, typer.Option(min=0, max=1, help="Fraction of requests reviewed at random.")] = 0.75,
    openinference: Annotated[bool, typer.Option(help="Write OpenInference JSON instead of routing.* keys.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random requests.")] = 1,
) -> None:
    """Send simulated requests of a tenant to Phoenix, some of them reviewed at random."""
    from autoopt_pipeline.devtools.send import send_traffic

    connections = open_connections(patient=True)
    config, _ = read_config(connections.configs, tenant)
    agents = [agent.name for agent in config.agents]
    rng = random.Random(f"{tenant}/{seed}")  # noqa: S311 - for variety, not for secrets
    profile = TrafficProfile(
        right=right,
        reviewed=reviewed,
        openinference=openinference,
        plans=not {"workflow", "unified"}.isdisjoint(config.modules),
        fuses="cross_modal" in config.modules,
    )
    truths = _truths(tenant, agents, traces, queries, query_field, label_field, profile, rng)
    labels = get_module("modality").labels or ()
    choices = {"agent": agents, "modality": [label.name for label in labels]}
    end = datetime.now(UTC)
    requests = list(simulate_requests(truths, choices, profile, start=end - timedelta(hours=hours), end=end, rng=rng))
    key = connections.settings.phoenix_api_key
    with console.status(f"sending {len(requests)} traces"):
        send_traffic(connections.phoenix, tenant, requests, api_key=key.get_secret_value() if key else None)
    reviews = sum(bool(request.reviews) for request in requests)
    console.print(f"{len(requests)} traces, {reviews} of them reviewed, are in {project_name(tenant)}")


def _truths(
    tenant: str,
    agents: list[str],
    traces: int,
    queries: Path | None,
    query_field: str,
    label_field: str,
    profile: TrafficProfile,
    rng: random.Random,
) -> list[SyntheticRequest]:
    if queries:
        requests = read_truths(queries, query_field, label_field, agents)
        return rng.sample(requests, min(traces, len(requests)))
    if set(agents) != set(SAMPLE_AGENTS):
        listed = " ".join(f"--agent {name}" for name in SAMPLE_AGENTS)
        raise InvalidConfig(
            f"the sample traffic needs the agents {', '.join(SAMPLE_AGENTS)}, but {tenant} has others",
            f"add a tenant with {listed}, or send your own queries with --queries",
        )
    return list(sample_truths_for(profile, traces, rng))
