"""Measures whether a tenant's active program gives the same answers twice."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn
from autoopt_pipeline.errors import BudgetTooSmall, DailyBudgetSpent, InvalidArtifact
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec
from autoopt_pipeline.tenants.config import Budget, DailyBudget, LMSettings, RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.tenants.store import read_config

if TYPE_CHECKING:
    import dagster as dg
    import dspy

    from autoopt_pipeline.evaluation.answer_noise import Repetition
    from autoopt_pipeline.lm.metering import Meter
    from autoopt_pipeline.lm.models import MeteredLM

# Newest traces to ask twice. If none of 100 answers differs, at most 4 % of all do.
MAX_TRACES = 100


def repeatability(
    parts: Connections, instance: "dg.DagsterInstance | None", tenant_id: str, module: str
) -> Iterator[Finding]:
    """Run the active program twice on the newest traces, within the run's budget and the rest of the daily budget.

    Records its usage in `instance`, if there is one. Raises `AutooptError` if the measurement is not possible.
    """
    # Imports DSPy.
    from autoopt_pipeline.evaluation.answer_noise import describe_gate_impact, describe_repetition, newest
    from autoopt_pipeline.lm.choice import resolve_lm
    from autoopt_pipeline.lm.metering import Meter
    from autoopt_pipeline.lm.models import answering_lms
    from autoopt_pipeline.registry.serialization import queries_shown

    config, _ = read_config(parts.configs, tenant_id)
    spec = get_module(module)
    labels = labels_of(spec, config)
    lm = resolve_lm(config.lm, parts.settings)
    budget = _budget(parts, instance, config)
    program, name = _serving(parts, config, spec, labels, lm)
    calls_a_trace = 2 * len(program.predictors())
    most = min(MAX_TRACES, budget.max_lm_calls // calls_a_trace)
    if most < 1:
        raise BudgetTooSmall(
            f"tenant {tenant_id}: {budget.max_lm_calls} LM calls do not pay for asking one trace twice",
            "raise budget.max_lm_calls, or wait for the next day (UTC) if the daily budget is nearly spent",
        )
    asked = newest(_examples(parts, config, spec, labels), queries_shown(program), most)
    if not asked:
        yield fail(
            f"{tenant_id}/{spec.name}: the lookback holds no trace that can be asked",
            f"see 'autoopt traces stats {tenant_id}'",
        )
        return
    calls = len(asked) * calls_a_trace
    yield ok(
        f"{tenant_id}/{spec.name}: {name} is asked the newest {len(asked)} traces twice by {_asked(program, lm)}, "
        f"{calls} LM calls"
    )
    meter = Meter(max_calls=calls, max_tokens=budget.max_tokens, max_dollars=budget.max_dollars)
    try:
        repetition = _ask_twice(spec, program, asked, lambda: answering_lms(config, parts.settings, meter))
    finally:
        _account(instance, tenant_id, spec.name, meter)
    if repetition.unreadable == repetition.asked:
        yield fail(f"none of {repetition.asked} answers could be read, so repeatability is unknown", _UNREADABLE)
        return
    finding = describe_repetition(repetition)
    yield warn(finding, _remedy(lm)) if repetition.differing or repetition.unreadable else ok(finding)
    yield ok(describe_gate_impact(repetition, _next_alpha(parts, tenant_id, spec.name)))


_UNREADABLE = "see 'autoopt doctor --call-lm', and whether lm.max_tokens is enough"


def _budget(parts: Connections, instance: "dg.DagsterInstance | None", config: RoutingConfigUnified) -> Budget:
    """Return the run's budget, or the rest of the day's if that is less. Raises `DailyBudgetSpent` if none is left."""
    from autoopt_pipeline.orchestration.budget_guard import cap_to_day, daily_budget_of_all

    if instance is None:
        if (config.daily_budget, daily_budget_of_all(parts.settings)) != (DailyBudget(), DailyBudget()):
            raise DailyBudgetSpent(
                f"tenant {config.tenant_id}: the rest of the day's budget is recorded in Dagster, "
                "which is not set up here",
                "set DAGSTER_HOME, or go to the folder with dagster.yaml",
            )
        return config.budget
    return cap_to_day(instance, config, parts.settings)


def _serving(
    parts: Connections, config: RoutingConfigUnified, spec: ModuleSpec, labels: tuple[Label, ...], lm: LMSettings
) -> "tuple[dspy.Module, str]":
    """Return the program that serves, and its name. Raises `InvalidArtifact` if the active version cannot serve."""
    from autoopt_pipeline.lm.choice import answering_models
    from autoopt_pipeline.modules.answer_format import CHAT
    from autoopt_pipeline.registry.serialization import compose, deserialize

    models, tenant_id = answering_models(config, parts.settings), config.tenant_id
    artifacts = parts.artifacts(tenant_id, spec.name)
    if active := artifacts.active():
        stored = artifacts.load(active.version)
        return deserialize(spec, labels, stored, models, encoder=parts.settings.encoder), active.version
    refused: dict[str, InvalidArtifact] = {}

    def refuse(part: ModuleSpec, why: InvalidArtifact) -> None:
        refused[part.name] = why

    answer_format = CHAT if lm.answer_format == "auto" else lm.answer_format
    active_parts = parts.active_parts(tenant_id, spec, refuse)
    program = compose(spec, labels, active_parts, refuse, answer_format, models, encoder=parts.settings.encoder)
    left_out = f" (without the active version of {', '.join(refused)}, which cannot serve)" if refused else ""
    return program, f"the baseline{left_out}"


def _examples(
    parts: Connections, config: RoutingConfigUnified, spec: ModuleSpec, labels: tuple[Label, ...]
) -> tuple[Example, ...]:
    """Return the examples of a run that started now."""
    from autoopt_pipeline.traces.reader import collect

    end = datetime.now(UTC) - timedelta(seconds=parts.settings.settling_seconds)
    start = end - timedelta(seconds=config.lookback_seconds)
    collected = collect(parts.phoenix, config.tenant_id, spec, start=start, end=end)
    decisions = collected.without(frozenset(config.excluded_traces)).decisions
    return spec.build_examples(labels, decisions, load_redaction(parts.settings.redaction)).examples


def _asked(program: "dspy.Module", lm: LMSettings) -> str:
    """Return the models that a program asks, for people."""
    from autoopt_pipeline.modules.named_model import models_asked

    return ", ".join(models_asked(program, lm.model))


def _ask_twice(
    spec: ModuleSpec, program: "dspy.Module", asked: Sequence[Example], new_lm: "Callable[[], MeteredLM]"
) -> "Repetition":
    from autoopt_pipeline.evaluation.answer_noise import repetition
    from autoopt_pipeline.evaluation.runner import answer_all, grade
    from autoopt_pipeline.lm.metering import BudgetExhausted

    try:
        # A model caches its answers, so the second pass needs its own.
        first, second = (answer_all(spec, program, asked, new_lm()) for _ in range(2))
    except BudgetExhausted as e:
        raise BudgetTooSmall(
            f"the budget does not pay for asking {len(asked)} traces twice: {e}",
            "raise budget.max_tokens, or wait for the next day (UTC) if the daily budget is nearly spent",
        ) from None
    return repetition((first, second), (grade(spec, asked, first), grade(spec, asked, second)))


def _account(instance: "dg.DagsterInstance | None", tenant_id: str, module: str, meter: "Meter") -> None:
    """Record what was spent in the daily budget."""
    from autoopt_pipeline.run_history.lm_usage import report_usage
    from autoopt_pipeline.scheduling.budgets import LMUsage

    if instance and meter.calls:
        usage = LMUsage(meter.calls, meter.tokens, meter.known_dollars)
        report_usage(instance, tenant_id, module, usage, reason="autoopt doctor --aa")


def _next_alpha(parts: Connections, tenant_id: str, module: str) -> float:
    """Return the alpha of the next holdout test."""
    from autoopt_pipeline.evaluation.alpha_ledger import alpha_of_charge

    artifacts = parts.artifacts(tenant_id, module)
    epoch = sum(transition.resets_alpha_budget for transition in artifacts.transitions())
    return alpha_of_charge(1 + sum(charge.epoch == epoch for charge in artifacts.ledger()))


def _remedy(lm: LMSettings) -> str:
    if lm.temperature:
        return f"set lm.temperature to 0 or leave it out: at {lm.temperature:g} answers are drawn by chance"
    return "serve it so that it repeats itself, as docs/choose-a-language-model.md says, or review more traces"
