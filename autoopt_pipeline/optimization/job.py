"""What one optimization is about: the module, its decisions and the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.redaction import redact as default_redact
from autoopt_pipeline.modules.spec import LoggedDecision, ModuleSpec
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.tenants.config import RoutingConfigUnified


@dataclass(frozen=True)
class OptimizationJob:
    """A module to optimize, with its decisions and the run. The window is in UTC, and its end is excluded.

    Decisions before the window are only those of traces that await reviews.
    `redact` removes personal data from every input before it is learnt, stored or shown. `parts` holds the active
    programs of a composed module's parts by name, from which it starts. `attempt` is the first run of this attempt, and
    `lost_runs` are its earlier runs that were lost. With `only`, one of `OPTIMIZERS`, no other optimizer races.
    `encoder` is the folder of the deployment's sentence encoder, which local routers then use.
    """

    spec: ModuleSpec
    config: RoutingConfigUnified
    decisions: Sequence[LoggedDecision]
    window_start: datetime
    window_end: datetime
    run_id: str
    redact: Redact = default_redact
    parts: Mapping[str, Program] = field(default_factory=dict)
    attempt: str = ""
    lost_runs: frozenset[str] = frozenset()
    only: str | None = None
    encoder: Path | None = None
