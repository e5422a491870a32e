"""The demo's tenants, each chosen to show a different outcome."""

import random
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from autoopt_pipeline.devtools.send import send_traffic
from autoopt_pipeline.devtools.traffic import (
    SAMPLE_AGENTS,
    SyntheticRequest,
    TrafficProfile,
    read_truths,
    sample_truths_for,
    simulate_requests,
)
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.similarity import normalize_query
from autoopt_pipeline.tenants.config import Agent, Budget, LMSettings, ModuleSettings, RoutingConfigUnified
from autoopt_pipeline.traces.client import Phoenix

INTERVAL_SECONDS = 5


@dataclass(frozen=True)
class SampleTenant:
    """A tenant, its traffic, what it demonstrates, and the verdict or decision that at least one module gets.

    Its requests are generated, or drawn from `queries`.
    """

    tenant_id: str
    shows: str
    expected: frozenset[str]
    traces: int
    habits: TrafficProfile = field(default_factory=TrafficProfile)
    modules: tuple[str, ...] = ("modality", "routing")
    enabled: bool = True
    queries: tuple[SyntheticRequest, ...] = ()

    @property
    def agents(self) -> dict[str, str]:
        """The tenant's agents with their descriptions."""
        if not self.queries:
            return SAMPLE_AGENTS
        return dict.fromkeys(sorted({query.answers["agent"] for query in self.queries}), "")


SAMPLE_TENANTS = (
    SampleTenant(
        "acme",
        "learns from its traffic, with all five modules",
        frozenset({"promoted"}),
        450,
        TrafficProfile(plans=True, fuses=True),
        modules=("modality", "routing", "cross_modal", "workflow", "unified"),
    ),
    SampleTenant(
        "globex:support",
        "an org:tenant id, OpenInference spans",
        frozenset({"promoted"}),
        450,
        TrafficProfile(openinference=True),
    ),
    SampleTenant(
        "umbrella",
        "right answers that do not depend on the query",
        frozenset({"rejected"}),
        450,
        TrafficProfile(answers_depend_on_query=False),
    ),
    SampleTenant(
        "initech",
        "nobody has reviewed its traffic, so a few reviews are asked for",
        frozenset({"awaiting_reviews"}),
        560,
        TrafficProfile(reviewed=0.0, complains=0.0),
    ),
    SampleTenant("newcomer", "too few traces", frozenset({"too_few_traces"}), 40),
    SampleTenant("dormant", "optimization turned off", frozenset({"disabled"}), 60, enabled=False),
)

# Added to `SAMPLE_TENANTS` with a real model: one module, few traces and a small budget, because the model is slow.
REAL_MODEL_TENANT = SampleTenant(
    "soylent",
    "a real language model answers",
    frozenset({"promoted", "rejected", "inconclusive"}),  # depends on the model
    310,
    TrafficProfile(reviewed=1.0),
    modules=("modality",),
)


# The tenant whose requests come from a file.
FROM_FILE = "from-file"

# Most requests of a file that the demo plays.
MOST_QUERIES = 1500


def tenant_of_file(path: Path) -> SampleTenant:
    """Return a tenant whose requests are the queries of a file of JSON lines. Raises `InvalidQueries`."""
    queries = tuple(read_truths(path, "query", "agent"))
    return SampleTenant(
        FROM_FILE,
        f"the queries of {path.name}",
        frozenset({"promoted", "rejected", "inconclusive", "awaiting_reviews", "not_enough_data", "too_few_traces"}),
        min(MOST_QUERIES, len(queries)),
        modules=("routing",),
        queries=queries,
    )


def sample_config(tenant: SampleTenant) -> RoutingConfigUnified:
    return RoutingConfigUnified(
        tenant_id=tenant.tenant_id,
        enable_auto_optimization=tenant.enabled,
        optimization_interval_seconds=INTERVAL_SECONDS,
        modules={name: ModuleSettings() for name in tenant.modules},
        agents=[Agent(name=name, description=text) for name, text in tenant.agents.items()],
    )


def real_model_config(lm: LMSettings) -> RoutingConfigUnified:
    """Return the configuration of `REAL_MODEL_TENANT`, with few calls and short prompts."""
    return sample_config(REAL_MODEL_TENANT).model_copy(
        update={
            "lm": lm,
            "budget": Budget(max_lm_calls=340),
            "dspy_max_labeled_demos": 8,
            "dspy_max_bootstrapped_demos": 0,
        }
    )


def configured_samples(
    lm: LMSettings | None, played: SampleTenant | None = None
) -> list[tuple[SampleTenant, RoutingConfigUnified]]:
    """Return all sample tenants with their configurations.

    With a real model `REAL_MODEL_TENANT` is one of them, and so is the tenant that is `played` from a file.
    """
    tenants = [*SAMPLE_TENANTS, *([played] if played else [])]
    samples = [(tenant, sample_config(tenant)) for tenant in tenants]
    return [*samples, (REAL_MODEL_TENANT, real_model_config(lm))] if lm else samples


def right_answers(tenant: SampleTenant, traces: int, *, seed: int) -> dict[str, dict[str, str]]:
    """Return the right answers in this traffic by normalized query, then by output field."""
    truths, _ = _truths(tenant, traces, seed)
    return {normalize_query(truth.query): truth.answers for truth in truths}


def _truths(tenant: SampleTenant, traces: int, seed: int) -> tuple[list[SyntheticRequest], random.Random]:
    """Return the requests of this traffic, and the generator for what follows from them."""
    rng = random.Random(f"{tenant.tenant_id}/{seed}")  # noqa: S311 - for variety, not for secrets
    if tenant.queries:
        return rng.sample(tenant.queries, traces), rng
    return list(sample_truths_for(tenant.habits, traces, rng)), rng


def send_sample_traffic(
    phoenix: Phoenix, tenant: SampleTenant, traces: int, *, start: datetime, end: datetime, seed: int
) -> None:
    """Simulate `traces` requests of the tenant between two moments (UTC)."""
    labels = get_module("modality").labels or ()
    choices = {"agent": list(tenant.agents), "modality": [label.name for label in labels]}
    truths, rng = _truths(tenant, traces, seed)
    send_traffic(
        phoenix,
        tenant.tenant_id,
        list(simulate_requests(truths, choices, tenant.habits, start=start, end=end, rng=rng)),
    )
