"""One partitioned asset per module. The sensor, the UI, backfills and commands all materialize these."""

import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import AutooptError, RunFailed
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.names import ATTEMPT_TAG, LM_POOL, WINDOW_END_TAG
from autoopt_pipeline.orchestration.budget_guard import attribute_to_daily_budget, budget_today, record_usage_on_failure
from autoopt_pipeline.orchestration.material import Material, gather
from autoopt_pipeline.orchestration.partitions import tenants_partitions
from autoopt_pipeline.orchestration.resources import Services
from autoopt_pipeline.orchestration.run_config import RunOverrides
from autoopt_pipeline.orchestration.step_errors import exit_with_parent, should_skip, translate_errors
from autoopt_pipeline.run_history.outcomes import outcome_since
from autoopt_pipeline.run_history.progress import StepProgress
from autoopt_pipeline.run_history.runs import created_at, runs_of_attempt
from autoopt_pipeline.tenants.config import Retry
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import newest_version

if TYPE_CHECKING:
    from autoopt_pipeline.optimization.report import Report

_EVER = datetime.min.replace(tzinfo=UTC)


def build_module_assets() -> Sequence[dg.AssetsDefinition]:
    return [_module_asset(spec) for spec in modules().values()]


def _module_asset(spec: ModuleSpec) -> dg.AssetsDefinition:
    asset = dg.AssetSpec(
        spec.name,
        description=spec.description,
        partitions_def=tenants_partitions,
        group_name="modules",
        kinds={"dspy"},
        # A composed module starts from the programs of its parts, so in one run it comes after them.
        deps=[part.name for part in spec.parts],
    )

    # A module that is left to another run has neither an outcome nor a check, so both are optional.
    @dg.multi_asset(name=spec.name, specs=[asset], check_specs=[_data_check(spec)], can_subset=True, pool=LM_POOL)
    def module_asset(
        context: dg.AssetExecutionContext, config: RunOverrides, services: Services
    ) -> Iterator[dg.MaterializeResult]:
        exit_with_parent()
        with translate_errors(context, Retry()):
            _check_one_tenant(context)
            if should_skip(context, spec.name):
                return
            connections = services.connect()
            entry = newest_version(connections.configs, context.partition_key)
            tenant = entry.parse()
        with translate_errors(context, tenant.retry):
            end = _window_end(context, connections)
            applied = config.applied_to(tenant)
            material = gather(connections, spec, applied, entry, end=end, log=context.log.info)
        yield _optimize(context, connections, spec, material, config)

    return module_asset


def _check_one_tenant(context: dg.AssetExecutionContext) -> None:
    """Raise `RunFailed` where no partition, or several, were chosen in the launchpad."""
    if not context.has_partition_key:
        raise RunFailed("the run is for no single tenant", "launch it with one partition, which is the tenant")


def _data_check(spec: ModuleSpec) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster 1.13. Without them one tenant's pass would hide another's failure.
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            "data",
            asset=spec.name,
            description="Whether the tenant's traces are fit to learn from.",
            partitions_def=tenants_partitions,
        )


def _optimize(
    context: dg.AssetExecutionContext,
    connections: Connections,
    spec: ModuleSpec,
    material: Material,
    overrides: RunOverrides,
) -> dg.MaterializeResult:
    from autoopt_pipeline.lm.metering import Meter
    from autoopt_pipeline.lm.models import answering_lms, lms_of_run
    from autoopt_pipeline.optimization.answer_checkpoint import AnswerCheckpoint
    from autoopt_pipeline.optimization.job import OptimizationJob
    from autoopt_pipeline.optimization.pipeline import optimize
    from autoopt_pipeline.orchestration.run_report import data_check, report_metadata

    config, collected, settings = material.config, material.collected, connections.settings
    with translate_errors(context, config.retry):
        budget = budget_today(context, config, settings, force=overrides.force)
    meter = Meter(max_calls=budget.max_lm_calls, max_tokens=budget.max_tokens, max_dollars=budget.max_dollars)
    with (
        translate_errors(context, config.retry),
        record_usage_on_failure(context, spec.name, meter),
        attribute_to_daily_budget(config, budget),
    ):
        artifacts = connections.artifacts(config.tenant_id, spec.name)
        kept = AnswerCheckpoint(artifacts)
        if kept.loaded:
            context.log.info(f"{kept.loaded} answers of an unfinished attempt are reused")
        lms = lms_of_run(config, settings, meter, kept)
        if lms.answering.is_stand_in:
            context.log.warning("answers come from the offline stand-in, which is no language model")
        job = OptimizationJob(
            spec,
            config.model_copy(update={"budget": budget}),
            collected.decisions,
            material.start,
            material.end,
            context.run.run_id,
            redact=load_redaction(settings.redaction),
            parts=connections.active_parts(
                config.tenant_id,
                spec,
                lambda part, why: context.log.warning(f"{part.name} starts from its baseline: {why}"),
            ),
            attempt=_attempt(context),
            lost_runs=_lost_runs(context, spec.name),
            only=overrides.optimizer,
            encoder=settings.encoder,
        )
        report = optimize(
            job,
            lms.answering,
            artifacts,
            teacher=lms.teacher,
            lm_judge=lms.judge,
            ask_anew=partial(answering_lms, config, settings, meter),
            log=context.log.info,
            on_progress=StepProgress(context, spec.name),
        )
        kept.drop()
        labels = [label.name for label in labels_of(spec, config)]
        metadata = report_metadata(
            report,
            collected,
            config_version=material.config_version,
            labels=labels,
            phoenix_endpoint=connections.phoenix.endpoint,
            comparison_url=_publish(context, connections, report),
            overrides=overrides.given(),
        )
        return dg.MaterializeResult(metadata=metadata, check_results=[data_check(report, labels)])


def _publish(context: dg.AssetExecutionContext, connections: Connections, report: "Report") -> str | None:
    """Publish the comparison as a Phoenix experiment. If that fails, the run goes on."""
    from autoopt_pipeline.traces.experiments import ComparedRow, ProgramAnswer, publish_comparison

    if not report.compared:
        return None
    rows = [
        ComparedRow(
            row.example.span_id,
            row.example.trace_id,
            row.example.inputs,
            row.example.right,
            ProgramAnswer(row.incumbent.values, row.case.incumbent.score, row.incumbent.confidence),
            ProgramAnswer(row.candidate.values, row.case.candidate.score, row.candidate.confidence),
        )
        for row in report.compared
    ]
    try:
        return publish_comparison(
            connections.phoenix,
            report.tenant_id,
            report.module,
            rows,
            incumbent=report.incumbent_version or "baseline",
            candidate=report.version or "candidate",
            verdict=report.verdict.value,
            run_id=context.run.run_id,
        ).compare_url
    except AutooptError as e:
        context.log.warning(f"the comparison is not shown in Phoenix: {e}")
        return None


def _attempt(context: dg.AssetExecutionContext) -> str:
    """The first run of this attempt: another run where this one is a retry."""
    return context.run.tags.get(ATTEMPT_TAG) or context.run.root_run_id or context.run.run_id


def _lost_runs(context: dg.AssetExecutionContext, module: str) -> frozenset[str]:
    """The earlier runs of this attempt, if none of them reported an outcome of the module."""
    attempt = _attempt(context)
    if attempt == context.run.run_id:
        return frozenset()
    earlier = runs_of_attempt(context.instance, attempt) - {context.run.run_id}
    last = outcome_since(context.instance, context.partition_key, module, _EVER)
    return frozenset() if last in earlier else earlier


def _window_end(context: dg.AssetExecutionContext, connections: Connections) -> datetime:
    """The sensor's tag, or for other runs the creation of the (first) run less the settling time."""
    tag = context.run.tags.get(WINDOW_END_TAG)
    if tag:
        return datetime.fromisoformat(tag).astimezone(UTC)
    created = created_at(context.instance, context.run.root_run_id or context.run.run_id) or datetime.now(UTC)
    return created - timedelta(seconds=connections.settings.settling_seconds)
