"""Generated requests with what is right for them."""

import random
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, sample_truths
from autoopt_pipeline.evaluation.split import HoldoutExample, Split
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec, Provenance
from autoopt_pipeline.optimization.optimizers import OptimizerContext
from autoopt_pipeline.tenants.config import Agent, LMSettings, RoutingConfigUnified

ROUTING, UNIFIED = get_module("routing"), get_module("unified")
LABELS = [Label(name, text) for name, text in SAMPLE_AGENTS.items()]
CONFIG = RoutingConfigUnified(
    tenant_id="acme",
    agents=[Agent(name=name) for name in SAMPLE_AGENTS],
    dspy_max_labeled_demos=20,
    dspy_max_bootstrapped_demos=4,
)
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def examples(spec: ModuleSpec, count: int, seed: int = 1) -> tuple[Example, ...]:
    """Generated requests with what is right for them; who asks for something of two kinds gets a report as well."""
    made = []
    for number, truth in enumerate(sample_truths(count, random.Random(seed))):
        agent, modality = truth.answers["agent"], truth.answers["modality"]
        agents = [agent, "report_agent"] if modality == "mixed" and agent != "report_agent" else [agent]
        known = {"modality": modality, "agent": agent, "agents": agents, "pattern": "sequential"}
        right = {name: known[name] for name in spec.outputs}
        inputs = {"query": truth.query, "entities": "", "relationships": ""}
        if spec is ROUTING:
            inputs["modality"] = ""
        time, span_id = T0 + timedelta(minutes=number), f"{number:016x}"
        made.append(Example(inputs, right, spec.label(right), Provenance.HUMAN, True, time, span_id, span_id * 2))
    return tuple(made)


def split_of(spec: ModuleSpec, train: int, dev: int, holdout: int = 0) -> Split:
    made = examples(spec, train + dev + holdout)
    judged = tuple(HoldoutExample(example, (example.query,)) for example in made[train + dev :])
    return Split(made[:train], made[train : train + dev], judged, (), 0, 0, 0, 0)


def stand_in(max_calls: int = 10**6, max_tokens: int = 10**12) -> MeteredLM:
    return metered_lm(LMSettings(model="stand-in"), Meter(max_calls, max_tokens))


def context_of(
    spec: ModuleSpec, train: int = 60, dev: int = 40, *, labeled: int = 20, bootstrapped: int = 4
) -> OptimizerContext:
    split, lm = split_of(spec, train, dev), stand_in()
    return OptimizerContext(
        spec, LABELS, spec.build_program(LABELS), split.train, split.dev, lm, lm, labeled, bootstrapped
    )
