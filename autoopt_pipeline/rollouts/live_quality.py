"""Reads what the version that serves did since the last check, and continues the monitor of its quality.

A review may come days after its decision, and Phoenix cannot list annotations by time. So where there are new
annotations, a check reads the decisions of the last `LATE_DAYS`, and takes those outcomes that became known since then.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from pydantic import ValidationError

from autoopt_pipeline.errors import InvalidArtifact
from autoopt_pipeline.evaluation.change_detector import Outcome
from autoopt_pipeline.evaluation.fall_cause import FAILED, Cause
from autoopt_pipeline.evaluation.quality_monitor import QualityMonitor, Stream, advance
from autoopt_pipeline.modules.coercion import number
from autoopt_pipeline.modules.labeling import read_attribute
from autoopt_pipeline.modules.online_score import live_outcome
from autoopt_pipeline.modules.spec import Label, LoggedDecision, ModuleSpec, Provenance
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.quality_records import ModuleQuality, QualityFall, quality_path
from autoopt_pipeline.span_contract import BASELINE, MODULE, PROGRAM_VERSION
from autoopt_pipeline.tenants.config import RoutingConfigUnified
from autoopt_pipeline.tenants.labels import labels_of
from autoopt_pipeline.text import one_line
from autoopt_pipeline.traces.client import Phoenix, Project
from autoopt_pipeline.traces.reader import bounded_window, read_decisions
from autoopt_pipeline.validation import first_error

# Days within which an outcome has to become known.
LATE_DAYS = 7

# Most decisions that one check reads. Of more, the newest count, because more would burden Phoenix.
MAX_DECISIONS = 10_000


def load_monitor(files: ObjectStore, tenant_id: str, module: str) -> QualityMonitor | None:
    """The state of the monitor, None before the first check. Raises `InvalidArtifact` if it is damaged."""
    path = quality_path(tenant_id, module)
    raw = files.read(path)
    try:
        return QualityMonitor.model_validate_json(raw) if raw is not None else None
    except ValidationError as e:
        raise InvalidArtifact(
            f"{tenant_id}/{module}: quality.json is damaged: {first_error(e)}",
            f"delete {path} from the artifact store; the monitor then starts anew",
        ) from None


def save_monitor(files: ObjectStore, tenant_id: str, module: str, monitor: QualityMonitor) -> None:
    files.replace(quality_path(tenant_id, module), monitor.model_dump_json().encode())


def monitor_of(
    known: QualityMonitor | None, version: str | None, *, until: datetime, begins: datetime | None
) -> QualityMonitor:
    """The monitor of the version that serves (None: the baseline): the known one, if it is of this version.

    Another version is monitored from the last check on, and a new module for the last `LATE_DAYS`. What was before
    `begins` (UTC) is about an earlier tenant of that name.
    """
    if begins and known and known.until < begins:
        known = None
    if known and known.version == version:
        return known
    oldest = until - timedelta(days=LATE_DAYS)
    began = known.until if known else max(oldest, begins or oldest)
    return QualityMonitor(version=version, began=began, until=began)


def continue_monitor(
    phoenix: Phoenix,
    project: Project,
    config: RoutingConfigUnified,
    spec: ModuleSpec,
    known: QualityMonitor,
    *,
    until: datetime,
    new_annotations: bool,
) -> tuple[QualityMonitor, QualityFall | None]:
    """Take what became known before `until` (UTC). Returns the new state, and the fall if one was found.

    Without `new_annotations` there cannot be outcomes of decisions that were read before. Raises `InvalidConfig`, and
    what `Phoenix` raises.
    """
    late = max(until - timedelta(days=LATE_DAYS), known.began)
    oldest = late if new_annotations else max(late, known.until)
    start, _ = bounded_window(phoenix, project, spec, oldest, until, most=2 * MAX_DECISIONS, newest=True)
    decisions = [
        decision
        for decision in read_decisions(phoenix, project, spec, start=start, end=until, also=(MODULE, PROGRAM_VERSION))
        if _is_of(decision, spec, known.version)
    ]
    found = outcomes_of(spec, labels_of(spec, config), decisions, after=known.until, until=until)
    return advance(known, found, until=until, false_alarm_days=config.quality.false_alarm_days)


def open_cause(fall: QualityFall, config: RoutingConfigUnified, *, asks_model: bool) -> QualityFall:
    """Say of a fall that was just found what will tell its cause, if nothing has told it yet.

    `asks_model`: whether the version asks a language model at all.
    """
    if fall.cause != Cause.UNKNOWN or fall.detail:
        return fall
    if not asks_model:
        told = {"cause": Cause.WITHIN_CLASSES.value, "detail": "this version asks no language model"}
    elif config.quality.replay_calls:
        told = {"detail": "the next run asks the model again what it was asked before"}
    else:
        told = {"detail": "set quality.replay_calls=60, and the next run asks the model again what it was asked before"}
    return fall.model_copy(update=told)


def summarized(monitor: QualityMonitor) -> ModuleQuality:
    count, level = sum(day.count for day in monitor.days), monitor.level
    mean, low, high = level or (None, None, None)
    return ModuleQuality(
        version=monitor.version,
        outcomes=count,
        level=mean,
        low=low,
        high=high,
        fall=monitor.fall,
        changed=str(monitor.changed) if monitor.changed else "",
    )


def outcomes_of(
    spec: ModuleSpec,
    labels: Sequence[Label],
    decisions: Sequence[LoggedDecision],
    *,
    after: datetime,
    until: datetime,
) -> Mapping[Stream, list[Outcome]]:
    """What became known after one moment, and no later than the other one (UTC), by stream."""
    groups = {
        example.span_id: one_line(example.label, length=60)
        for example in spec.build_requests(labels, decisions, redact=str)
    }
    scored = [(decision, outcome) for decision in decisions if (outcome := live_outcome(spec, labels, decision))]
    # Where only failures are known, their mean says nothing of quality; they have a stream of their own.
    tells = any(outcome.source is Provenance.OUTCOME and not decision.failed for decision, outcome in scored)
    recent = [decision for decision in decisions if after < decision.time <= until]
    confidence = [
        (decision, number(read_attribute(decision.attributes, spec.contract.confidence))) for decision in recent
    ]
    return {
        Stream.SCORE: [
            Outcome(
                outcome.known_at,
                outcome.score,
                outcome.source.value,
                FAILED if decision.failed else groups.get(decision.span_id, ""),
            )
            for decision, outcome in scored
            if after < outcome.known_at <= until and (tells or outcome.source is not Provenance.OUTCOME)
        ],
        Stream.FAILURES: [Outcome(decision.time, 0.0 if decision.failed else 1.0) for decision in recent],
        Stream.CONFIDENCE: [
            Outcome(decision.time, min(max(value, 0.0), 1.0)) for decision, value in confidence if value is not None
        ],
    }


def _is_of(decision: LoggedDecision, spec: ModuleSpec, version: str | None) -> bool:
    """Whether a version made a decision. An application that does not say is taken to use the one that serves."""
    module, own = decision.attributes.get(MODULE), decision.attributes.get(PROGRAM_VERSION)
    return (not isinstance(module, str) or module == spec.name) and (
        not isinstance(own, str) or own == (version or BASELINE)
    )
