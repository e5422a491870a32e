"""Value types of serving: decisions, loaded programs, problems and status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from autoopt_pipeline.errors import InvalidRequest
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label, ModuleSpec
from autoopt_pipeline.span_contract import BASELINE

if TYPE_CHECKING:
    import dspy

    from autoopt_pipeline.modules.answer_format import AnswerFormat

# Role of a version for a request: active, on trial for a fraction of requests, or the module's baseline.
Arm = Literal["active", "canary", "baseline"]

# An agent by name, or by name and description.
AgentLike = str | tuple[str, str] | Label


@dataclass(frozen=True)
class BuildSettings:
    """What an application sets for its programs: the format of baselines, the folder of the sentence encoder, and the
    language models that versions may name."""

    baseline_format: "AnswerFormat"
    encoder: Path | None
    lms: "Mapping[str, dspy.BaseLM]"


@dataclass(frozen=True)
class Loaded:
    """A program that is ready to answer with the current labels.

    `version` is None for the module's baseline. `parts` maps the parts of a composed baseline to their versions.
    `adapter` caches the formatted demos: use it with `dspy.context` if you have not configured another one.
    """

    program: "dspy.Module"
    version: str | None
    arm: Arm
    parts: Mapping[str, str]
    adapter: "dspy.Adapter"


@dataclass(frozen=True)
class Decision:
    """A program's answer to one request. It is plain data, so that it can be stored until there is feedback.

    `values` are the output fields except the confidence (0 to 1, None if the program has none). `sampled` is True if
    the decision was drawn at random for review. `spans` maps modules to span ids in Phoenix: one, or one per part of a
    composed module; empty if nothing was recorded.
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
        """Id of the decision's own span, or None if nothing was recorded."""
        return self.spans.get(self.module)

    def part(self, module: str) -> "Decision":
        """Return the decision of one part of a composed module, to give feedback on it. Raises `InvalidRequest`."""
        part = next((part for part in get_module(self.module).parts if part.name == module), None)
        if part is None:
            raise InvalidRequest(f"{self.module} has no part {module[:60]!r}", "name one of its parts")
        values = {name: self.values[name] for name in part.outputs}
        spans = {module: self.spans[module]} if module in self.spans else {}
        return replace(self, module=module, values=values, spans=spans)


@dataclass(frozen=True)
class Problem:
    """Something that is wrong but does not stop serving. `where` is `tenant/module`, or a component of serving."""

    where: str
    what: str
    remedy: str
    since: datetime


@dataclass(frozen=True)
class Status:
    """What serves for one tenant's module. `version` is None for the baseline.

    `read_at` is when its pointer was last read from the store (UTC), or None if that never succeeded.
    """

    tenant_id: str
    module: str
    version: str | None
    canary: Mapping[str, float]
    read_at: datetime | None
    problem: Problem | None


def labels_of(spec: ModuleSpec, agents: Sequence[AgentLike] | None) -> tuple[Label, ...]:
    """Return the labels that a module may answer: its fixed labels, or the application's current agents.

    Raises `InvalidRequest` if the module needs agents and there are none.
    """
    if isinstance(agents, str):
        raise InvalidRequest(f"agents is the text {agents[:60]!r}", f"pass a list: agents=[{agents[:60]!r}]")
    if spec.labels is not None:
        return spec.labels
    labels = (
        agent if isinstance(agent, Label) else Label(*((agent,) if isinstance(agent, str) else agent))
        for agent in agents or ()
    )
    by_name = {label.name: label for label in labels}
    if not by_name:
        raise InvalidRequest(f"{spec.name} chooses from the application's agents", "pass them as agents=[...]")
    return tuple(by_name.values())


def version_name(version: str | None) -> str:
    """Return a version's name for spans and for people."""
    return version or BASELINE
