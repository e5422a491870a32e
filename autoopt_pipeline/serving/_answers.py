"""The nouns of serving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from autoopt_pipeline.errors import InvalidRequest
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.span_contract import BASELINE

if TYPE_CHECKING:
    import dspy

Arm = Literal["active", "canary", "baseline"]
"""What a version is to a request: the active one, one that is being tried on a share of requests, or none at all."""

AgentLike = str | tuple[str, str] | Label
"""An agent by name, or by name and description."""


@dataclass(frozen=True)
class Loaded:
    """A program ready to answer with the labels of today.

    `version` is None for the module's baseline; of a composed module, `parts` then tells which versions of its parts
    it is made of. `adapter` keeps the demos formatted: use it with `dspy.context` where no other is configured.
    """

    program: "dspy.Module"
    version: str | None
    arm: Arm
    parts: Mapping[str, str]
    adapter: "dspy.Adapter"


@dataclass(frozen=True)
class Decision:
    """What a program answered to one request. All of it is plain data, fit to be stored until feedback comes.

    `values` are the output fields beside the confidence (0 to 1, None where the program has none). `sampled` says
    that this decision was drawn at random for review. `spans` are the ids of its spans in Phoenix by module: one, or of
    a composed module one for each part; empty where nothing was recorded.
    """

    tenant_id: str
    module: str
    values: Mapping[str, Any]
    confidence: float | None
    version: str | None
    arm: Arm
    sampled: bool
    trace_id: str | None
    spans: Mapping[str, str] = field(default_factory=dict)

    @property
    def span_id(self) -> str | None:
        """The decision's own span, or None where nothing was recorded."""
        return self.spans.get(self.module)

    def part(self, module: str) -> "Decision":
        """The decision of one part of a composed module, to give feedback on. Raises `InvalidRequest`."""
        part = next((part for part in get_module(self.module).parts if part.name == module), None)
        if part is None:
            raise InvalidRequest(f"{self.module} has no part {module[:60]!r}", "name one of its parts")
        values = {name: self.values[name] for name in part.outputs}
        spans = {module: self.spans[module]} if module in self.spans else {}
        return replace(self, module=module, values=values, spans=spans)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong and does not stop serving. `where` is `tenant/module`, or the part of serving."""

    where: str
    what: str
    remedy: str
    since: datetime


@dataclass(frozen=True)
class Status:
    """What is in service for one tenant's module; `version` is None for the baseline.

    `read_at` is when its pointer was last read from the store, UTC; None when that never succeeded.
    """

    tenant_id: str
    module: str
    version: str | None
    canary: Mapping[str, float]
    read_at: datetime | None
    problem: Problem | None


def labels_of(spec: ModuleSpec, agents: Sequence[AgentLike] | None) -> tuple[Label, ...]:
    """What a module may answer: its fixed labels, or the application's agents of now.

    Raises `InvalidRequest` when agents are needed and none are given.
    """
    if isinstance(agents, str):
        raise InvalidRequest(f"agents is the text {agents[:60]!r}", f"pass a list: agents=[{agents[:60]!r}]")
    if spec.labels is not None:
        return spec.labels
    found = (
        agent if isinstance(agent, Label) else Label(*((agent,) if isinstance(agent, str) else agent))
        for agent in agents or ()
    )
    by_name = {label.name: label for label in found}
    if not by_name:
        raise InvalidRequest(f"{spec.name} chooses from the application's agents", "pass them as agents=[...]")
    return tuple(by_name.values())


def version_name(version: str | None) -> str:
    """A version as spans and people are told it."""
    return version or BASELINE
