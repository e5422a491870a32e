"""One partitioned asset per module. The sensor, the UI, backfills and the command line all run these."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from autoopt_pipeline.connections import Connections
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.modules.registry import modules
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.orchestration.partitions import tenants_partitions
from autoopt_pipeline.orchestration.services import Services
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import read_config

if TYPE_CHECKING:
    from autoopt_pipeline.traces.collect import Collected

WINDOW_END_TAG = "autoopt/window_end"
"""Run tag: traces before this moment (UTC) are read, so that a retried run sees the same."""

_RETRY_TRANSIENT = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


def build_module_assets() -> Sequence[dg.AssetsDefinition]:
    return [_module_asset(spec) for spec in modules().values()]


def _module_asset(spec: ModuleSpec) -> dg.AssetsDefinition:
    @dg.asset(
        name=spec.name,
        description=spec.description,
        partitions_def=tenants_partitions,
        group_name="modules",
        kinds={"dspy"},
        retry_policy=_RETRY_TRANSIENT,
    )
    def module_asset(context: dg.AssetExecutionContext, services: Services) -> dg.MaterializeResult:
        with _failing_the_step(may_retry=True):
            connections = services.connect()
            material = _gather(context, connections, spec)
        # A search costs money, so what fails here is not tried again at once: the tenant backs off.
        with _failing_the_step(may_retry=False):
            return _optimize(context, connections, spec, material)

    return module_asset


@dataclass(frozen=True)
class _Material:
    """What a run learns from and for."""

    config: RoutingConfigUnified
    config_version: int
    start: datetime
    end: datetime
    collected: "Collected"


def _gather(context: dg.AssetExecutionContext, connections: Connections, spec: ModuleSpec) -> _Material:
    # DSPy, pandas and the Phoenix client take seconds to import, so only a run does.
    from autoopt_pipeline.traces.collect import collect

    tenant = context.partition_key
    config, config_version = read_config(connections.configs, tenant)
    labels_of(spec, config)
    end = _window_end(context, connections)
    start = end - timedelta(seconds=config.lookback_seconds)
    context.log.info(f"reading traces of {tenant} from {start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC")
    collected = collect(connections.phoenix, tenant, spec.contract, start=start, end=end)
    return _Material(config, config_version, start, end, collected)


def _optimize(
    context: dg.AssetExecutionContext, connections: Connections, spec: ModuleSpec, material: _Material
) -> dg.MaterializeResult:
    from autoopt_pipeline.lm.meter import Meter
    from autoopt_pipeline.lm.models import metered_lm, resolve_lm
    from autoopt_pipeline.optimization.optimize import Job, optimize
    from autoopt_pipeline.orchestration.report import report_metadata

    config, collected = material.config, material.collected
    meter = Meter(max_calls=config.budget.max_lm_calls, max_tokens=config.budget.max_tokens)
    lm = metered_lm(resolve_lm(config.lm, connections.settings), meter)
    if lm.is_stand_in:
        context.log.warning("answers come from the offline stand-in, which is no language model")
    redact = load_redaction(connections.settings.redaction)
    job = Job(spec, config, collected.decisions, material.start, material.end, context.run.run_id, redact)
    report = optimize(job, lm, connections.artifacts(config.tenant_id, spec.name), say=context.log.info)
    return dg.MaterializeResult(
        metadata=report_metadata(report, collected, material.config_version, connections.phoenix.endpoint)
    )


@contextmanager
def _failing_the_step(*, may_retry: bool) -> Generator[None, None, None]:
    """Turn errors into failures with one line for a person; those that may pass by themselves can be retried."""
    try:
        yield
    except AutooptError as e:
        allow = may_retry and e.transient
        raise dg.Failure(str(e), metadata={"remedy": e.remedy}, allow_retries=allow) from e
    except Exception as e:
        raise dg.Failure(f"unexpected {type(e).__name__}: {e}", allow_retries=False) from e


def _window_end(context: dg.AssetExecutionContext, connections: Connections) -> datetime:
    """The tag of the sensor, or for a run started otherwise its (first attempt's) creation less the settling time."""
    tag = context.run.tags.get(WINDOW_END_TAG)
    if tag:
        return datetime.fromisoformat(tag).astimezone(UTC)
    record = context.instance.get_run_record_by_id(context.run.root_run_id or context.run.run_id)
    created = record.create_timestamp if record else datetime.now(UTC)
    created = created if created.tzinfo else created.replace(tzinfo=UTC)
    return created.astimezone(UTC) - timedelta(seconds=connections.settings.settling_seconds)
