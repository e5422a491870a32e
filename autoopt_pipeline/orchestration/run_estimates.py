"""Estimates what a run of a module would use of language models, from the traces that it would read."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.orchestration.material import gather
from autoopt_pipeline.run_history.module_events import EventKind, newest_events
from autoopt_pipeline.run_history.outcomes import ESTIMATED
from autoopt_pipeline.tenants.stores.base import StoredConfig

_OUTCOMES = 20
"""Newest outcomes among which the last search is looked for."""

_MOST_OFF = 3.0
"""Largest factor by which the last search corrects an estimate."""


@dataclass(frozen=True)
class RunEstimate:
    """Expected calls, tokens and dollars (None is unknown) of a run, and what it needs them for.

    `corrected` is whether they were corrected by how far the estimate of the last search was off.
    """

    lm_calls: float
    lm_tokens: float
    lm_dollars: float | None
    purpose: str
    corrected: bool


def estimate_run(
    instance: dg.DagsterInstance, connections: Connections, entry: StoredConfig, module: str
) -> RunEstimate:
    """Estimate a run that started now. It reads the traces as a run does, and asks no language model.

    Raises the errors of Phoenix and the stores, and `LMNotConfigured`.
    """
    from autoopt_pipeline.lm.metering import Meter
    from autoopt_pipeline.lm.models import lms_of_run
    from autoopt_pipeline.optimization.estimate import SEARCHES
    from autoopt_pipeline.optimization.job import OptimizationJob
    from autoopt_pipeline.optimization.pipeline import estimate

    spec, config, settings = get_module(module), entry.parse(), connections.settings
    end = datetime.now(UTC) - timedelta(seconds=settings.settling_seconds)
    material = gather(connections, spec, config, entry, end=end)
    meter = Meter(max_calls=0, max_tokens=0, max_dollars=config.budget.max_dollars)
    lms = lms_of_run(config, settings, meter)
    expected, purpose = estimate(
        OptimizationJob(
            spec,
            config,
            material.collected.decisions,
            material.start,
            end,
            run_id="",
            redact=load_redaction(settings.redaction),
            parts=connections.active_parts(config.tenant_id, spec, lambda part, why: None),
            encoder=settings.encoder,
        ),
        lms.answering,
        connections.artifacts(config.tenant_id, module),
        teacher=lms.teacher,
        lm_judge=lms.judge,
    )
    factors = _corrections(instance, entry, module, lms.answering.name) if purpose == SEARCHES else {}
    numbers = {name: value * factors.get(name, 1.0) for name, value in expected.known.items()}
    return RunEstimate(
        lm_calls=min(numbers["lm_calls"], config.budget.max_lm_calls),
        lm_tokens=min(numbers["lm_tokens"], config.budget.max_tokens),
        lm_dollars=numbers.get("lm_dollars"),
        purpose=purpose,
        corrected=bool(factors),
    )


def _corrections(instance: dg.DagsterInstance, entry: StoredConfig, module: str, lm: str) -> dict[str, float]:
    """Return how many times as much as expected the last search with this model used, by name."""
    for event in newest_events(
        instance, EventKind.MATERIALIZATION, module, tenants=[entry.tenant_id], since=entry.since, limit=_OUTCOMES
    ).items:
        values = event.values
        if not values.get(f"{ESTIMATED}lm_calls") or not str(values.get("language_model", "")).startswith(lm):
            continue
        used = {name: (values.get(name), values.get(f"{ESTIMATED}{name}")) for name in _NUMBERS}
        return {
            name: min(_MOST_OFF, max(1 / _MOST_OFF, actual / expected))
            for name, (actual, expected) in used.items()
            if isinstance(actual, int | float) and isinstance(expected, int | float) and expected > 0
        }
    return {}


_NUMBERS = ("lm_calls", "lm_tokens", "lm_dollars")
