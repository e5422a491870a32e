"""The status of one module, in sentences."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from autoopt_pipeline.registry.module_versions import describe_rollout
from autoopt_pipeline.registry.program_cost import dollars_text
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.registry.transitions import active_rollout
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.status.module_detail import ModuleDetail
from autoopt_pipeline.status.module_status import ModuleStatus
from autoopt_pipeline.text import ago, duration, listed_unread, percent

DOING = "doing"
"""The word before the progress of a run."""


_COMMAND = re.compile(r"[;:] (?:[a-z ]+ )?'autoopt [^']*'(?: [a-z ]+)?")


def page_sentences(story: ModuleDetail, now: datetime) -> Iterator[tuple[str, str]]:
    """The same for a page, which has links instead of commands and shows progress separately."""
    for word, text in sentences(story, now):
        if word == DOING:
            continue
        reason = story.standing.decision.reason.value
        plain = _COMMAND.sub("", text).replace(" -> ", " → ")
        yield word, plain.replace(f"{reason}:", f"{reason.replace('_', ' ')}:", 1) if word == "now" else plain


def sentences(story: ModuleDetail, now: datetime) -> Iterator[tuple[str, str]]:
    """The sentences about a module, each with the word before it, which is empty where the previous one continues."""
    standing, decision = story.standing, story.standing.decision
    yield "now", f"{decision.reason.value}: {decision.detail}"
    if standing.progress:
        yield DOING, standing.progress.describe(now)
    yield "configured", _configured(story)
    yield "last", _last(story, now)
    if standing.attempts.failures:
        yield "failed", f"{standing.attempts.failures} in a row since then"
    for failed in story.failures:
        yield "", f"{failed.at:%Y-%m-%d %H:%M:%S} UTC, run {failed.run_id}: {failed.cause}"
    yield "needed", _needed(story, now)
    yield "serves", _serves(story, now)
    if standing.quality and standing.quality.version == standing.active:
        yield "quality", str(standing.quality)
    if story.cost:
        yield "cost", story.cost
    if back := standing.rolled_back:
        yield "rolled back", f"{', '.join(back.versions)}, {ago(back.at, now)}, by {back.actor}: {back.reason}"
    if rollout := active_rollout(story.last_transition):
        yield (
            "rollout",
            f"{describe_rollout(rollout)}; 'autoopt rollouts {standing.tenant_id} {standing.module}' compares them",
        )
    if standing.rollout_reviews:
        yield "", describe_rollout_reviews(standing)
    if test := story.sequential_test:
        so_far = f"{100 * test.gain:+.1f} points on {test.traces} held-out traces" if test.gain is not None else ""
        awaited = f"{test.to_review} of the drawn traces are to be reviewed" if test.to_review else ""
        yield (
            "under test",
            f"{test.version}, since {ago(test.since, now)}: {'; '.join(part for part in (so_far, awaited) if part)}",
        )
    if judge := story.judge:
        classes = ", ".join(f"{name} {agreed} of {count}" for name, (agreed, count) in judge.by_class.items())
        yield "judge", f"{judge}{f' ({classes})' if classes else ''}"
    for event in story.events:
        details = ", ".join(f"{name} {value}" for name, value in event.details.items())
        text = "; ".join(part for part in (event.reason, details) if part)
        yield event.kind.replace("_", " "), f"{event.at:%Y-%m-%d %H:%M:%S} UTC: {text}"


def describe_rollout_reviews(standing: ModuleStatus) -> str:
    """Say how many reviews a rollout waits for, and what they are good for."""
    count = standing.rollout_reviews
    requests = "1 request" if count == 1 else f"{count} requests"
    return (
        f"the two versions answer {requests} differently that nobody has reviewed yet; each review shows sooner which "
        f"version is better: 'autoopt review {standing.tenant_id} {standing.module}'"
    )


def _configured(story: ModuleDetail) -> str:
    config, module = story.config, story.standing.module
    interval = timedelta(seconds=config.interval_seconds(module))
    return (
        f"version {story.config_version}: at most every {duration(interval)}, "
        f"from {config.min_samples(module)} new traces and annotations on, mode {config.mode_of(module)}"
    )


def _last(story: ModuleDetail, now: datetime) -> str:
    standing, last = story.standing, story.last_run
    if last is None:
        return "never optimized"
    text = f"{standing.verdict or last.verdict or 'reported by hand'}, {ago(last.at, now)}"
    if last.reason:
        text += f": {last.reason}"
    if last.incumbent_score is not None:
        text += f"; score {percent(last.incumbent_score)} -> {percent(last.candidate_score)} %"
    if last.version:
        text += f"; version {last.version}"
    if last.unread_answers:
        text += f"; answers that could not be read: {listed_unread(last.unread_answers)}"
    if last.lm_calls is not None:
        text += f"; {last.lm_calls} LM calls"
    if last.lm_dollars:
        text += f", {dollars_text(last.lm_dollars)}"
    text += f"; run {last.run_id}" if last.run_id else ""
    if standing.unreported:
        text += ", of which no report is left"
    if standing.proposed and last.version:
        text += f"; approve it with 'autoopt promote {standing.tenant_id} {standing.module} {last.version}'"
    if standing.verdict == Verdict.WOULD_HAVE_PROMOTED:
        text += f"; 'autoopt config set {standing.tenant_id} modules.{standing.module}.mode=auto' makes it active"
    return text


def _needed(story: ModuleDetail, now: datetime) -> str:
    decision = story.standing.decision
    if decision.launch:
        return "nothing: the sensor launches a run at its next tick"
    parts = [f"next decision {ago(decision.until, now)}"] if decision.until else []
    if decision.evidence and decision.need:
        asks = f"; 'autoopt review {story.standing.tenant_id} {story.standing.module}' asks for them"
        parts.append(
            f"{decision.counted} of {decision.need} {decision.needed}{asks if decision.awaits_reviews else ''}"
        )
    if story.due_in:
        parts.append(
            f"as traces came in the last day ({story.traces_per_day}), that is in about {duration(story.due_in)}"
        )
    return "; ".join(parts) or decision.detail


def _serves(story: ModuleDetail, now: datetime) -> str:
    standing, moved = story.standing, story.last_transition
    if standing.error:
        return standing.error
    text = standing.active or BASELINE
    if standing.active_score is not None:
        text += f", {percent(standing.active_score)} % on the held-out traces that decided"
    if standing.active_lm:
        text += f"; proven with {standing.active_lm}"
    if moved:
        text += f"; since {ago(moved.at, now)}, moved by {moved.actor}"
        if story.last_run is None or moved.reason != story.last_run.reason:
            text += f": {moved.reason}"
    return text
