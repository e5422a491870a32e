"""Decides which of the tenant's agents takes a query."""

from autoopt_pipeline import span_contract
from autoopt_pipeline.modules.spec import ModuleSpec

ROUTING = ModuleSpec(
    name="routing",
    description="Which of the tenant's agents should take a query.",
    contract=span_contract.ROUTING,
    outputs=("agent",),
    labels=None,
    program="autoopt_pipeline.modules.builtin.programs:routing_program",
)
