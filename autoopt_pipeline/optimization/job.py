"""What one optimization is about, and what its run is given: models, the artifact store, and who listens."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from autoopt_pipeline.lm.models import MeteredLM
from autoopt_pipeline.lm.progress import PhaseTracker
from autoopt_pipeline.modules.redaction import Redact
from autoopt_pipeline.modules.redaction import redact as default_redact
from autoopt_pipeline.modules.spec import Label, LoggedDecision, ModuleSpec
from autoopt_pipeline.registry.records import Program
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of


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


@dataclass(frozen=True)
class ModuleRun:
    """What the run of a job is given. It never changes.

    `lm` answers, `teacher` writes instructions and demos, and `lm_judge` judges disagreements before people do.
    `ask_anew` makes `lm` without cached answers. `log` gets a line for each step. `started` is in monotonic seconds.
    """

    job: OptimizationJob
    lm: MeteredLM
    teacher: MeteredLM
    lm_judge: MeteredLM | None
    artifacts: VersionStore
    log: Callable[[str], None]
    tracker: PhaseTracker
    ask_anew: Callable[[], MeteredLM] | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def spec(self) -> ModuleSpec:
        return self.job.spec

    @property
    def config(self) -> RoutingConfigUnified:
        return self.job.config

    @property
    def labels(self) -> tuple[Label, ...]:
        """What programs choose from. Raises `InvalidConfig` if there are fewer than two."""
        return labels_of(self.spec, self.config)
