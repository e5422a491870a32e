"""Modality, routing and workflow as one program, optimized and scored as a whole."""

from collections.abc import Sequence

from autoopt_pipeline import span_contract
from autoopt_pipeline.modules.builtin.modality import MODALITY
from autoopt_pipeline.modules.builtin.routing import ROUTING
from autoopt_pipeline.modules.builtin.workflow import WORKFLOW
from autoopt_pipeline.modules.labeling import GroundTruth, Unusable, collect_examples, make_example
from autoopt_pipeline.modules.spec import Example, ExampleSet, Label, LoggedDecision, ModuleSpec, Provenance

_WORST_FIRST = (Provenance.OUTCOME, Provenance.JUDGE, Provenance.HUMAN)


def build_examples(spec: ModuleSpec, labels: Sequence[Label], decisions: Sequence[LoggedDecision]) -> ExampleSet:
    """Build examples from traces in which every part is known. The least certain part sets the provenance."""

    def build(decision: LoggedDecision) -> Example:
        parts = [_part(part, labels, decision) for part in spec.parts]
        right = GroundTruth(
            {name: value for part in parts for name, value in part.right.items()},
            min((part.provenance for part in parts), key=_WORST_FIRST.index),
            all(part.independent for part in parts),
        )
        # The program decides the modality and the agents itself, so they are not inputs.
        known = {"modality", "available_agents"}
        inputs = {name: text for part in parts for name, text in part.inputs.items() if name not in known}
        return make_example(spec, decision, inputs, right)

    return collect_examples(decisions, build)


def _part(part: ModuleSpec, labels: Sequence[Label], decision: LoggedDecision) -> Example:
    own = decision.parts.get(part.name)
    if own is None:
        raise Unusable(f"the trace has no {part.contract.span_name} span for {part.name}")
    built = part.build_examples(part.labels or labels, [own], redact=str)
    if not built.examples:
        raise Unusable(f"{part.name}: {next(iter(built.unusable))}", malformed=built.malformed > 0)
    return built.examples[0]


UNIFIED = ModuleSpec(
    name="unified",
    description="Modality, routing and workflow in one program, judged as a whole.",
    contract=span_contract.WORKFLOW,
    outputs=("agents", "pattern", "agent", "modality"),
    labels=None,
    program="autoopt_pipeline.modules.builtin.programs:unified_program",
    examples="autoopt_pipeline.modules.builtin.unified:build_examples",
    grading="autoopt_pipeline.modules.scoring:WHOLE",
    parts=(MODALITY, ROUTING, WORKFLOW),
    scheduled_by_default=False,
)
