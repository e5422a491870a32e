"""The pages of one tenant's modules: story, versions and outcomes of runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.dashboard.context import Dashboard, configured, dashboard_of, visible_entry, visible_tenant
from autoopt_pipeline.dashboard.module_results import before_and_after, quality_over_time, race
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError, InvalidArtifact, InvalidConfig
from autoopt_pipeline.evaluation.quality_monitor import Day
from autoopt_pipeline.modules.coercion import number
from autoopt_pipeline.optimization.report import Change, changes_of_versions
from autoopt_pipeline.registry.module_versions import (
    ModuleVersions,
    VersionEvent,
    cost_of,
    decided_about,
    describe_rollout,
    describe_transition,
    how_it_ended,
    lm_of,
    predictors_of,
    read_programs,
    routers_of,
)
from autoopt_pipeline.registry.program_cost import describe_costs
from autoopt_pipeline.registry.records import Manifest, Transition, Verdict
from autoopt_pipeline.registry.transitions import rollback_stack as stands
from autoopt_pipeline.reviews.queue import open_queue
from autoopt_pipeline.rollouts.live_quality import load_monitor
from autoopt_pipeline.rollouts.production import analyze_now
from autoopt_pipeline.run_history.module_events import EventKind, newest_events
from autoopt_pipeline.run_history.progress import read_module_progress
from autoopt_pipeline.span_contract import BASELINE
from autoopt_pipeline.status.explain import page_sentences
from autoopt_pipeline.status.module_detail import ModuleDetail
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.text import did_you_mean, listed_unread

_OUTCOMES_SHOWN = 50
_MOVES_SHOWN = 100


def tenant_page(request: Request) -> Response:
    dashboard, entry = dashboard_of(request), configured(request)
    standings = dashboard.standings(entry)
    try:
        config, wrong = entry.parse(), ""
    except InvalidConfig as e:
        config, wrong = None, str(e)
    return render(
        request,
        "tenant.html",
        tenant=entry.tenant_id,
        entry=entry,
        config=config,
        wrong=wrong,
        rows=standings,
        silent=dashboard.counts.trouble,
    )


def why_page(request: Request) -> Response:
    """The decision about each module of a tenant, in sentences."""
    dashboard, user = dashboard_of(request), request.user
    stored = dashboard.configs(user)
    asked = request.query_params.get("tenant", "").strip()
    stories, error = [], ""
    if asked and asked not in stored:
        error = f"There is no tenant {asked[:200]!r} with a configuration. {did_you_mean(asked, stored).capitalize()}"
    elif asked:
        now, entry = datetime.now(UTC), stored[asked]
        try:
            modules = entry.parse().modules
            for story in dashboard.stories(entry, modules, now=now):
                stories.append((story.standing, list(page_sentences(story, now))))
        except AutooptError as e:
            error = str(e)
    return render(
        request,
        "why.html",
        asked=asked,
        tenants=sorted(stored),
        stories=stories,
        error=error,
        silent=dashboard.counts.trouble,
    )


def module_page(request: Request) -> Response:
    """Everything about one module of one tenant."""
    dashboard, entry, module = dashboard_of(request), visible_entry(request), request.path_params["module"]
    tenant = entry.tenant_id
    programs = read_programs(dashboard.parts.files, tenant, module)
    outcomes = list(_outcomes(dashboard, entry, module))
    story = _story(request)
    to_review, rollout_reviews = _to_review(dashboard, story["story"])
    return render(
        request,
        "module.html",
        to_review=to_review,
        rollout_reviews=rollout_reviews,
        programs=programs,
        versions=_versions(programs),
        outcomes=outcomes,
        quality=quality_over_time(outcomes, programs.transitions, _live_days(dashboard, tenant, module)),
        change=before_and_after(programs),
        transitions=[
            (transition, describe_transition(transition))
            for transition in reversed(programs.transitions[-_MOVES_SHOWN:])
        ],
        ended=[(result, how_it_ended(result)) for result in reversed(programs.artifacts.rollout_results())],
        can_go_back=len(stands(programs.transitions)) > 1 or bool(programs.rollout and programs.rollout.is_canary),
        BASELINE=BASELINE,
        **story,
    )


def _live_days(dashboard: Dashboard, tenant: str, module: str) -> Sequence[Day]:
    """The last days of what serves in production. None if their file is damaged, which the sensor reports."""
    try:
        monitor = load_monitor(dashboard.parts.files, tenant, module)
    except InvalidArtifact:
        return ()
    return monitor.days if monitor else ()


def _to_review(dashboard: Dashboard, story: ModuleDetail | None) -> tuple[int | None, int]:
    """How many traces reviewers are still asked about, for the candidate and for the rollout.

    The candidate's number is None where none awaits reviews, or Phoenix does not answer.
    """
    if story is None or not (story.standing.awaits_reviews or story.standing.rollout_reviews):
        return None, 0
    try:
        queue = open_queue(dashboard.parts, story.standing.tenant_id, story.standing.module)
    except AutooptError:
        return None, story.standing.rollout_reviews
    of_rollout = queue.waiting_of_rollout if queue else 0
    return (len(queue.waiting) - of_rollout or None if queue else None), of_rollout


def module_story_part(request: Request) -> Response:
    """The story of a module, which its page refreshes."""
    return render(request, "module_story.html", **_story(request))


def progress_part(request: Request) -> Response:
    """The progress of the current run. It reads one row, so a page can ask every other second."""
    tenant, module = visible_tenant(request), request.path_params["module"]
    progress = read_module_progress(dashboard_of(request).instance, tenant, module)
    return render(request, "module_progress.html", tenant=tenant, module=module, progress=progress)


def live_part(request: Request) -> Response:
    """The comparison of two watched versions so far. It reads from Phoenix, so it runs only on request."""
    dashboard, tenant, module = dashboard_of(request), visible_tenant(request), request.path_params["module"]
    parts, counts = dashboard.parts, dashboard.counts
    programs = read_programs(parts.files, tenant, module)
    known, trouble, summary = None, "", ""
    if rollout := programs.rollout:
        summary, settling = describe_rollout(rollout), parts.settings.settling_seconds
        try:
            analysis = analyze_now(parts.phoenix, parts.configs, programs.artifacts, rollout, settling_seconds=settling)
            known = counts.keep_analysis((tenant, module), rollout, analysis)
        except AutooptError as e:
            known, trouble = counts.last_analysis((tenant, module), rollout), str(e)
    return render(
        request, "live.html", programs=programs, summary=summary, known=known, trouble=trouble, BASELINE=BASELINE
    )


def version_page(request: Request) -> Response:
    """The origin of a version, what it shows the model, and how it differs from another version."""
    dashboard, entry, module = dashboard_of(request), visible_entry(request), request.path_params["module"]
    tenant = entry.tenant_id
    programs = read_programs(dashboard.parts.files, tenant, module)
    manifest = programs.manifest(request.path_params["version"])
    against = request.query_params.get("against") or manifest.parent or BASELINE
    stored, gone = None, ""
    try:
        stored = programs.artifacts.load(manifest.version)
    except InvalidArtifact as e:
        gone = str(e)
    changes: Sequence[Change] = ()
    incomparable = ""
    try:
        changes = changes_of_versions(programs, programs.named(against), manifest.version)
    except AutooptError as e:
        incomparable = str(e)
    outcome = next((row for row in _outcomes(dashboard, entry, module) if _made(row, manifest)), None)
    return render(
        request,
        "version.html",
        tenant=tenant,
        module=module,
        programs=programs,
        manifest=manifest,
        lm=lm_of(manifest),
        cost=cost_of(manifest),
        decision_cost=describe_costs(manifest.costs),
        unread=listed_unread(manifest.unread),
        verdict=programs.verdict(manifest),
        raced=race(manifest),
        last=programs.last_event(manifest.version),
        declined=programs.declined(manifest.version),
        left=programs.rolled_back.get(manifest.version),
        withdrawn=programs.withdrawal(manifest.version),
        ended=[
            how_it_ended(e) for e in programs.artifacts.rollout_results() if manifest.version in (e.version, e.against)
        ],
        predictors=predictors_of(stored) if stored else {},
        routers=routers_of(stored) if stored else {},
        gone=gone,
        against=against,
        others=[BASELINE, *(other.version for other in programs.manifests if other.version != manifest.version)],
        changes=changes,
        incomparable=incomparable,
        outcome=outcome,
    )


def outcome_page(request: Request) -> Response:
    """The report of one run: candidates, gate, confusion, calibration, fixed and broken examples, changes."""
    dashboard, entry, module = dashboard_of(request), visible_entry(request), request.path_params["module"]
    tenant = entry.tenant_id
    run_id = request.path_params["run"]
    for outcome in _outcomes(dashboard, entry, module):
        if outcome.run_id == run_id:
            return render(
                request,
                "outcome.html",
                tenant=tenant,
                module=module,
                outcome=outcome,
            )
    raise HTTPException(HTTPStatus.NOT_FOUND, f"none of the last {_OUTCOMES_SHOWN} outcomes is of this run")


@dataclass(frozen=True)
class OutcomeRow:
    """The outcome of a run for a module, from Dagster's event log; scores are 0 to 1.

    `decided` is a person's decision about the version that the run proposed.
    """

    at: datetime
    run_id: str
    metadata: Mapping[str, Any]
    decided: str | None = None

    @property
    def verdict(self) -> str:
        return self.decided or str(self.metadata.get("verdict", "")) or "reported by hand"

    @property
    def reason(self) -> str:
        return str(self.metadata.get("reason", ""))

    @property
    def report(self) -> str:
        """Markdown in which all text from the tenant is escaped."""
        report = str(self.metadata.get("report", ""))
        return report.replace(f"**{Verdict.AWAITING_APPROVAL}**", f"**{self.decided}**", 1) if self.decided else report

    @property
    def incumbent_score(self) -> float | None:
        return number(self.metadata.get("incumbent_score"))

    @property
    def candidate_score(self) -> float | None:
        return number(self.metadata.get("candidate_score"))

    @property
    def reviews(self) -> int:
        """How many of the held-out traces were reviewed."""
        return int(number(self.metadata.get("reviews")) or 0)

    def link(self, name: str) -> str | None:
        """A URL in the metadata; None when it is not http:// or https://."""
        url = self.metadata.get(name)
        return url if isinstance(url, str) and url.startswith(("http://", "https://")) else None


def _outcomes(dashboard: Dashboard, entry: StoredConfig, module: str) -> Iterator[OutcomeRow]:
    """The last outcomes, newest first."""
    artifacts = dashboard.parts.artifacts(entry.tenant_id, module)
    transitions: list[Transition] | None = None
    newest = newest_events(
        dashboard.instance,
        EventKind.MATERIALIZATION,
        module,
        tenants=[entry.tenant_id],
        since=entry.since,
        limit=_OUTCOMES_SHOWN,
    )
    for event in newest.items:
        decided = None
        if event.values.get("verdict") == Verdict.AWAITING_APPROVAL and "version" in event.values:
            transitions = artifacts.transitions() if transitions is None else transitions
            decided = decided_about(artifacts, str(event.values["version"]), transitions)
        yield OutcomeRow(event.at, event.run_id, event.values, decided)


def _made(outcome: OutcomeRow, manifest: Manifest) -> bool:
    return outcome.metadata.get("version") == manifest.version and outcome.run_id == manifest.run_id


@dataclass(frozen=True)
class Version:
    """A row in the list of versions. `manifest` is None when it cannot be read; then `wrong` is the reason."""

    name: str
    verdict: str
    manifest: Manifest | None
    last: VersionEvent | None
    wrong: str = ""


def _versions(programs: ModuleVersions) -> list[Version]:
    """Newest first. Damaged versions come last, because their time is unknown."""
    versions = [
        Version(manifest.version, programs.verdict(manifest), manifest, programs.last_event(manifest.version))
        for manifest in reversed(programs.manifests)
    ]
    return versions + [
        Version(name, "damaged", None, programs.last_event(name), str(error))
        for name, error in programs.damaged.items()
    ]


def _story(request: Request) -> dict[str, Any]:
    """The decision in sentences, as `autoopt why` prints it, or the error that prevents one."""
    dashboard, tenant, module = dashboard_of(request), visible_tenant(request), request.path_params["module"]
    context: dict[str, Any] = {
        "tenant": tenant,
        "module": module,
        "story": None,
        "sentences": [],
        "error": "",
        "progress": None,
        "silent": None,
    }
    try:
        now = datetime.now(UTC)
        (story,) = dashboard.stories(configured(request), [module], now=now)
    except AutooptError as e:
        return context | {"error": str(e)}
    return context | {
        "story": story,
        "sentences": list(page_sentences(story, now)),
        "progress": story.standing.progress,
        "silent": dashboard.counts.trouble,
    }
