"""Decides which agents take a request, in sequence or in parallel."""

import re
from collections.abc import Sequence
from typing import Any

from autoopt_pipeline import span_contract
from autoopt_pipeline.modules.coercion import parse_json
from autoopt_pipeline.modules.labeling import (
    Unusable,
    collect_examples,
    find_right,
    make_example,
    read_attribute,
    read_inputs,
    read_text,
)
from autoopt_pipeline.modules.scoring import PARALLEL, SEQUENTIAL
from autoopt_pipeline.modules.spec import Example, ExampleSet, Label, LoggedDecision, ModuleSpec

# Longest plan to learn from.
MAX_AGENTS = 8


def build_examples(spec: ModuleSpec, labels: Sequence[Label], decisions: Sequence[LoggedDecision]) -> ExampleSet:
    """Build examples whose right answer is a plan, from orchestrations that succeeded or were judged."""
    known = {label.name for label in labels}

    def build(decision: LoggedDecision) -> Example:
        inputs = read_inputs(spec, decision) | {"available_agents": agents_text(labels)}
        right = find_right(spec, decision, _own_plan(spec, decision), parse_plan)
        if not known.issuperset(right.values["agents"]):
            raise Unusable("the plan names an agent that is not one of the current ones")
        if len(right.values["agents"]) > MAX_AGENTS:
            raise Unusable(f"the plan has more than {MAX_AGENTS} agents")
        return make_example(spec, decision, inputs, right)

    return collect_examples(decisions, build)


def agents_text(labels: Sequence[Label]) -> str:
    """Return the available agents in the program's form."""
    return ", ".join(label.name for label in labels)


def parse_plan(label: str) -> dict[str, Any]:
    """Parse an annotator's plan: `a > b` or `a, b` for a sequence, `a + b` for parallel agents."""
    agents = [agent.strip() for agent in re.split(r"[>+,]", label)]
    if not all(agents):
        raise Unusable("the right plan cannot be read")
    return {"agents": agents, "pattern": PARALLEL if "+" in label and len(agents) > 1 else SEQUENTIAL}


def _own_plan(spec: ModuleSpec, decision: LoggedDecision) -> dict[str, Any] | None:
    value = read_attribute(decision.attributes, spec.contract.answers["agents"])
    if isinstance(value, str):
        value = parse_json(value) if value.lstrip().startswith("[") else value.split(",")
    if not isinstance(value, list | tuple) or not value or not all(isinstance(a, str) and a.strip() for a in value):
        return None
    pattern = read_text(decision.attributes, spec.contract.answers["pattern"])
    parallel = pattern == PARALLEL and len(value) > 1
    return {"agents": [agent.strip() for agent in value], "pattern": PARALLEL if parallel else SEQUENTIAL}


WORKFLOW = ModuleSpec(
    name="workflow",
    description="Which agents take a request, one after the other or side by side.",
    contract=span_contract.WORKFLOW,
    outputs=("agents", "pattern"),
    labels=None,
    program="autoopt_pipeline.modules.builtin.programs:workflow_program",
    examples="autoopt_pipeline.modules.builtin.workflow:build_examples",
    grading="autoopt_pipeline.modules.scoring:PLAN",
    scheduled_by_default=False,
)
