"""Erases traces of a tenant from everything that was learnt from them."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.erasure.programs import ErasedVersions, erase_from_programs, versions_with
from autoopt_pipeline.erasure.run_reports import runs_reporting
from autoopt_pipeline.erasure.target import ErasureTarget
from autoopt_pipeline.errors import ConfigConflict, UnknownTrace
from autoopt_pipeline.modules.catalog import module_names, modules
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.registry.audit_log import record_action
from autoopt_pipeline.registry.version_store import modules_of
from autoopt_pipeline.run_history.runs import unfinished_runs
from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, parse_config
from autoopt_pipeline.tenants.store import read_config, unknown_tenant, write_config
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.traces.experiments import forget_in_datasets
from autoopt_pipeline.traces.lookup import find_asked, span_ids_of

_TRIES = 5


@dataclass(frozen=True)
class Erasure:
    """What was erased, and what is left to do.

    `config_version` excludes the traces from learning; it is None if an earlier one does, or the tenant is removed.
    `not_found` are traces of which Phoenix has no query. `datasets` counts the examples in deleted datasets, by module.
    `unfinished_run` may have read the traces before they were excluded. Reports of `quoting_runs` contain a text.
    """

    tenant_removed: bool
    config_version: int | None
    not_found: Sequence[str]
    datasets: dict[str, int]
    programs: dict[str, ErasedVersions]
    unfinished_run: str | None
    quoting_runs: Sequence[str]


def erase(
    connections: Connections,
    instance: dg.DagsterInstance | None,
    tenant_id: str,
    trace_ids: Sequence[str],
    texts: Sequence[str] = (),
    *,
    actor: str,
) -> Erasure:
    """Exclude traces from learning, delete their text from datasets and programs, and find the runs that quote it.

    `texts` are queries of traces that Phoenix no longer has. Without an `instance`, no run is found. Repeating it
    finishes what an earlier call left undone. Raises `UnknownTenant`, and `UnknownTrace` for a trace without a text.
    """
    history = connections.configs.history(tenant_id)
    if not history:
        raise unknown_tenant(tenant_id, connections.configs.current())
    target, not_found = _find_target(connections, tenant_id, trace_ids, texts)
    stores = modules_of(connections.files, tenant_id)
    tenant_removed, config_version = history[-1].document is None, None
    if not tenant_removed:
        # This comes first, so that no run that starts from now on learns the traces again.
        retrain = [
            artifacts.module
            for artifacts in stores
            if (active := artifacts.active()) and active.version in versions_with(artifacts, target)
        ]
        config_version = exclude_traces(
            connections.configs, tenant_id, trace_ids, retrain, now=datetime.now(UTC), actor=actor
        )
    unfinished = unfinished_runs(instance, module_names()).get(tenant_id) if instance else None
    datasets = {
        module: forget_in_datasets(
            connections.phoenix, tenant_id, module, span_ids=target.span_ids, queries=target.queries
        )
        for module in sorted({*module_names(), *(artifacts.module for artifacts in stores)})
    }
    programs = {artifacts.module: erase_from_programs(artifacts, target, actor=actor) for artifacts in stores}
    for artifacts in stores:
        artifacts.drop_kept_answers()
        artifacts.erase_drawn(trace_ids)
        artifacts.erase_replayed(lambda asked: asked.trace_id in trace_ids or target.is_in(asked.inputs))
    text = f"traces {', '.join(trace_ids)}: in no program and no dataset any more"
    record_action(connections.files, actor=actor, what="erased", tenant_id=tenant_id, module="", text=text)
    return Erasure(
        tenant_removed=tenant_removed,
        config_version=config_version,
        not_found=not_found,
        datasets={module: count for module, count in datasets.items() if count},
        programs={module: erased for module, erased in programs.items() if erased.withdrawn or erased.now},
        unfinished_run=unfinished,
        quoting_runs=_quoting_runs(instance, tenant_id, trace_ids, target) if instance else (),
    )


def exclude_traces(
    configs: TenantConfigStore,
    tenant_id: str,
    trace_ids: Collection[str],
    retrain: Collection[str],
    *,
    now: datetime,
    actor: str = "",
) -> int | None:
    """Enter traces that nothing is learnt from, and modules that are to be retrained, in the tenant's configuration.

    Returns the version that was written, or None if nothing changes. Modules that the tenant does not have stay out.
    Raises `InvalidConfig` when the list is full, and `ConfigConflict` when others keep changing the configuration.
    """
    for _ in range(_TRIES):
        config, version = read_config(configs, tenant_id)
        changed = _excluding(config, trace_ids, [module for module in retrain if module in config.modules], now)
        if changed == config:
            return None
        try:
            return write_config(configs, changed, actor=actor, expected_version=version)
        except ConfigConflict:
            continue
    raise ConfigConflict(f"tenant {tenant_id}: the configuration keeps changing", "repeat the command")


def _excluding(
    config: RoutingConfigUnified, trace_ids: Iterable[str], retrain: Sequence[str], now: datetime
) -> RoutingConfigUnified:
    fields = chosen_fields(config, *(["modules"] if retrain else []))
    fields["excluded_traces"] = list(dict.fromkeys([*config.excluded_traces, *trace_ids]))
    for module in retrain:
        fields["modules"][module]["retrain_after"] = now
    return parse_config(fields, where=f"tenant {config.tenant_id}")


def _find_target(
    connections: Connections, tenant_id: str, trace_ids: Sequence[str], texts: Sequence[str]
) -> tuple[ErasureTarget, list[str]]:
    """What the traces contain, and which of them Phoenix does not have."""
    phoenix = connections.phoenix
    asked = find_asked(phoenix, tenant_id, modules().values(), trace_ids)
    known = {decision.trace_id for decision in asked}
    not_found = [trace_id for trace_id in trace_ids if trace_id not in known]
    if not_found and not texts:
        raise UnknownTrace(
            f"Phoenix {phoenix.endpoint} has nothing that was asked in trace {', '.join(not_found)} of {tenant_id}",
            "give its text with --query, once for each text",
        )
    redact = load_redaction(connections.settings.redaction)
    queries = [query for query in (*texts, *(decision.query for decision in asked)) if query.strip()]
    target = ErasureTarget(
        span_ids=span_ids_of(phoenix, tenant_id, known),
        queries=frozenset(text for query in queries for text in (query, redact(query))),
        spans_known=not texts,
        trace_ids=frozenset(trace_ids),
    )
    return target, not_found


def _quoting_runs(
    instance: dg.DagsterInstance, tenant_id: str, trace_ids: Sequence[str], target: ErasureTarget
) -> list[str]:
    """The runs whose reports contain a text, or a link to a trace."""

    def matches(value: str) -> bool:
        return target.is_in_raw(value) or any(trace_id in value for trace_id in trace_ids)

    return runs_reporting(instance, tenant_id, module_names(), matches)
