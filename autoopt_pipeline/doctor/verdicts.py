"""Checks the last verdicts of all tenants' modules for missing traces or reviews."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor.findings import Finding, ok, warn
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.scheduling.conditions import RunOutcome, why_off
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import listed_counts

# Time limit for reading outcomes. Dagster takes 0.3 ms for one.
SECONDS = 10.0

_AT_ONCE = 1000
_SHOWN = 5

# Remedies by verdict, for verdicts that lack data.
_REMEDIES = {
    Verdict.AWAITING_REVIEWS.value: "'autoopt review' asks for them",
    Verdict.NOT_ENOUGH_DATA.value: "wait for more traces",
}


def last_verdicts(parts: Connections, home: Path | None, *, seconds: float = SECONDS) -> Iterator[Finding]:
    """Count the last verdicts of all enabled modules and warn about missing data.

    Reads the newest first, until the time limit.
    """
    if home is None:
        yield warn("no verdict is known without a Dagster instance", "set DAGSTER_HOME")
        return
    from autoopt_pipeline.run_history.instance import open_instance
    from autoopt_pipeline.run_history.outcomes import read_attempts, read_outcomes, reason_of

    deadline = time.monotonic() + seconds
    stored = parts.configs.current()
    on = _modules_that_are_on(stored)
    begins = {tenant: entry.since for tenant, entry in stored.items() if entry.since}
    with open_instance(home) as instance:
        # Verdicts only: 'autoopt status' and alerts report failed runs.
        attempts = read_attempts(instance, modules(), failures_since=datetime.now(UTC), tenants=stored, begins=begins)
        ids = {key: attempt.outcome_id for key, attempt in attempts.items() if key in on and attempt.outcome_id}
        left = sorted(ids, key=lambda key: -ids[key])
        outcomes: dict[tuple[str, str], RunOutcome] = {}
        while left and time.monotonic() < deadline:
            some, left = left[:_AT_ONCE], left[_AT_ONCE:]
            outcomes |= read_outcomes(instance, {key: attempts[key] for key in some})
        lacking = sorted(key for key, outcome in outcomes.items() if outcome.verdict in _REMEDIES)
        for tenant, module in lacking[:_SHOWN]:
            verdict, reason = outcomes[tenant, module].verdict, reason_of(instance, module, ids[tenant, module])
            yield warn(f"{tenant}/{module}: {verdict}, {reason}", _REMEDIES[verdict])
    if len(lacking) > _SHOWN:
        yield warn(f"{len(lacking) - _SHOWN} more modules lack traces or reviews", "'autoopt status' shows them")
    counts = Counter(outcome.verdict or "without a verdict" for outcome in outcomes.values())
    summary = f"checked the last verdicts of {len(outcomes)} of the {len(on)} enabled modules"
    summary += f": {listed_counts(dict(sorted(counts.items())))}" if counts else ""
    yield ok(f"{summary}; no time was left for {len(left)} older ones" if left else summary)


def _modules_that_are_on(stored: Mapping[str, StoredConfig]) -> set[tuple[str, str]]:
    enabled = set()
    for tenant, entry in stored.items():
        try:
            config = entry.parse()
        except AutooptError:
            continue  # a finding of the configuration store's check
        enabled |= {(tenant, module) for module in config.modules if not why_off(config, module)}
    return enabled
