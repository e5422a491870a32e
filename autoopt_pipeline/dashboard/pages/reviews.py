"""Reviews: the queues that wait, and one question at a time. Nothing on a page says which program gave which answer."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from starlette.authentication import requires
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from autoopt_pipeline.dashboard.asked_questions import AskedQuestion
from autoopt_pipeline.dashboard.auth import User
from autoopt_pipeline.dashboard.context import Dashboard, configured, dashboard_of
from autoopt_pipeline.dashboard.flash import say
from autoopt_pipeline.dashboard.paging import PAGE
from autoopt_pipeline.dashboard.status_cache import StatusSnapshot
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.registry.records import DrawnTrace, Verdict
from autoopt_pipeline.reviews.answers import BOTH_FINE, CANNOT_TELL, write_review
from autoopt_pipeline.reviews.claims import claim, release
from autoopt_pipeline.reviews.queue import ReviewQueue, open_queue, questions, shortest_first
from autoopt_pipeline.scheduling.conditions import ScheduleDecision
from autoopt_pipeline.status.module_status import ModuleStatus

_UNDOABLE = 50
"""Answers that can be taken back. They travel in a cookie, and browsers drop cookies over 4 kB."""

_ANSWERED = "answered"


def list_page(request: Request) -> Response:
    """The queues that wait for reviews. Phoenix is asked only about modules that are known to await some."""
    dashboard = dashboard_of(request)
    snapshot, trouble = dashboard.statuses.latest()
    awaiting = _awaiting(snapshot, request.user)
    queues, errors = _read_queues(dashboard, awaiting[:PAGE])
    return render(
        request,
        "reviews.html",
        snapshot=snapshot,
        trouble=trouble,
        queues=queues,
        errors=errors,
        unread=len(awaiting[PAGE:]),
    )


@requires("reviewer")
def question_page(request: Request) -> Response:
    """The next question, or one that this user has answered here before and wants to answer again."""
    dashboard, tenant, module = _place(request)
    wanted = request.query_params.get("trace", "")
    again = wanted if wanted in _answered(request) else ""
    try:
        queue = _open_queue(dashboard, tenant, module)
        asked = _next_question(request, queue, again=again) if queue else None
    except AutooptError as e:
        return _show(request, None, None, wrong=str(e), status=HTTPStatus.SERVICE_UNAVAILABLE)
    if asked:
        dashboard.asked.keep(asked)
    return _show(request, queue, asked)


def answer(request: Request, form: FormData) -> Response:
    """Store an answer and go on. On an error, show it beside the question and keep what the user entered."""
    dashboard, tenant, module = _place(request)
    span_id, given = str(form.get("trace", "")), str(form.get("answer", "")).strip()
    note = str(form.get("note", "")).strip() if given == CANNOT_TELL else ""
    here = _path(tenant, module)
    asked = dashboard.asked.find(tenant, module, span_id)
    try:
        asked = asked or _ask_about(dashboard, tenant, module, span_id)
        if asked is None:
            say(request, "Nobody asks that question any more. Your answer was not needed.")
            return RedirectResponse(here, HTTPStatus.SEE_OTHER)
        if not given:
            return _refuse(request, asked, "Choose an answer.")
        write_review(dashboard.parts.phoenix, asked.question, given, reviewer=request.user.name, note=note)
    except AutooptError as e:
        return _refuse(request, asked, f"Your answer is not stored yet: {e}", given=given, note=note)
    dashboard.asked.forget(asked.question)
    with suppress(AutooptError):  # the review is stored, and the claim ends by itself
        release(dashboard.parts.files, tenant, module, span_id)
    _remember(request, span_id)
    return RedirectResponse(here, HTTPStatus.SEE_OTHER)


def _awaiting(snapshot: StatusSnapshot | None, user: User) -> list[ModuleStatus]:
    """The modules that the user may see and whose last outcome or rollout awaits reviews, those that need the fewest
    first."""
    awaiting = [
        status
        for status in (snapshot.standings if snapshot else ())
        if status.enabled
        and (status.verdict == Verdict.AWAITING_REVIEWS or status.rollout_reviews)
        and user.sees(status.tenant_id)
    ]
    return sorted(awaiting, key=lambda s: (s.reviews_left is None, s.reviews_left or 0, s.tenant_id, s.module))


def _read_queues(dashboard: Dashboard, awaiting: Sequence[ModuleStatus]) -> tuple[list[ReviewQueue], list[str]]:
    """The queues of these modules that somebody can review, and the errors that hide others."""
    queues: list[ReviewQueue] = []
    errors: dict[str, None] = {}  # a Phoenix that is down has the same error for all
    for status in awaiting:
        try:
            queue = open_queue(dashboard.parts, status.tenant_id, status.module)
        except AutooptError as e:
            errors[str(e)] = None
            continue
        if queue and queue.waiting:
            queues.append(_with_decision(queue, status))
    return shortest_first(queues), list(errors)


def _place(request: Request) -> tuple[Dashboard, str, str]:
    """The dashboard, tenant and module. Raises an error that becomes 404 where there is none, or none to be seen."""
    tenant = configured(request).tenant_id
    return dashboard_of(request), tenant, get_module(request.path_params["module"]).name


def _next_question(request: Request, queue: ReviewQueue, *, again: str) -> AskedQuestion | None:
    """Claim a question. None if nothing is left, or others look at all that is."""
    dashboard, files = dashboard_of(request), dashboard_of(request).parts.files
    for trace in _candidates(queue, again):
        if not claim(files, queue.tenant_id, queue.module, trace.span_id, _claimant(request)):
            continue
        for question in questions(dashboard.parts, queue, [trace]):
            return AskedQuestion.of(queue, question)
        release(files, queue.tenant_id, queue.module, trace.span_id)  # Phoenix no longer has it
    return None


def _candidates(queue: ReviewQueue, again: str) -> Iterator[DrawnTrace]:
    yield from (trace for trace in queue.traces if trace.span_id == again)
    yield from queue.waiting


def _ask_about(dashboard: Dashboard, tenant: str, module: str, span_id: str) -> AskedQuestion | None:
    """The question about one trace, if its queue is still open."""
    queue = _open_queue(dashboard, tenant, module)
    traces = [trace for trace in queue.traces if trace.span_id == span_id] if queue else []
    asked = (AskedQuestion.of(queue, each) for each in questions(dashboard.parts, queue, traces)) if queue else iter(())
    return next(asked, None)


def _open_queue(dashboard: Dashboard, tenant: str, module: str) -> ReviewQueue | None:
    """The queue of a module, with what the last status of all tenants says of it."""
    snapshot, _ = dashboard.statuses.latest()
    standings = snapshot.standings if snapshot else ()
    status = next((each for each in standings if (each.tenant_id, each.module) == (tenant, module)), None)
    queue = open_queue(dashboard.parts, tenant, module)
    return _with_decision(queue, status) if queue and status else queue


def _with_decision(queue: ReviewQueue, status: ModuleStatus) -> ReviewQueue:
    return replace(queue, decides_after=_decides_after(queue, status))


def _decides_after(queue: ReviewQueue, status: ModuleStatus) -> int | None:
    """Count the reviews that were given since the status was read, too."""
    if status.verdict != Verdict.AWAITING_REVIEWS or status.last_at is None:
        return None
    if status.decision.launch:
        return 0
    if status.decision.need is None:
        return None
    newest = [given[-1] for span_id, given in queue.reviews.items() if queue.versions[span_id] == queue.candidate]
    since = status.last_at.replace(microsecond=0)  # Phoenix keeps whole seconds
    return max(0, status.decision.need - sum(review.updated_at >= since for review in newest))


def _refuse(request: Request, asked: AskedQuestion | None, wrong: str, *, given: str = "", note: str = "") -> Response:
    return _show(request, None, asked, wrong=wrong, given=given, note=note, status=HTTPStatus.CONFLICT)


def _show(
    request: Request,
    queue: ReviewQueue | None,
    asked: AskedQuestion | None,
    *,
    wrong: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    **entered: str,
) -> Response:
    dashboard, tenant, module = _place(request)
    decision = None if asked or wrong else _decision(dashboard, request, module)
    return render(
        request,
        "review.html",
        status=status,
        tenant=tenant,
        module=module,
        here=_path(tenant, module),
        queue=queue,
        asked=asked,
        back=_before(request, asked),
        decision=decision,
        wrong=wrong,
        BOTH_FINE=BOTH_FINE,
        CANNOT_TELL=CANNOT_TELL,
        **{"given": "", "note": "", **entered},
    )


def _decision(dashboard: Dashboard, request: Request, module: str) -> ScheduleDecision | None:
    """What the sensor decides about the next run, now that reviews have been given."""
    standings = dashboard.standings(configured(request))
    return next((status.decision for status in standings if status.module == module), None)


def _before(request: Request, asked: AskedQuestion | None) -> str:
    """The trace that this user answered here before the one on the page; empty if there is none."""
    answered = _answered(request)
    span_id = asked.question.trace.span_id if asked else ""
    earlier = answered[: answered.index(span_id)] if span_id in answered else answered
    return earlier[-1] if earlier else ""


def _answered(request: Request) -> list[str]:
    """The traces of this queue that the user answered in this session, oldest first."""
    stored: Any = request.session.get(_ANSWERED)
    return stored[1] if stored and stored[0] == _digest(request.user.name, request.url.path) else []


def _remember(request: Request, span_id: str) -> None:
    others = [answered for answered in _answered(request) if answered != span_id]
    answered = [*others, span_id][-_UNDOABLE:]
    request.session[_ANSWERED] = [_digest(request.user.name, request.url.path), answered]


def _claimant(request: Request) -> str:
    """Who claims a question: people who share one name, as with a single token, have sessions of their own."""
    csrf = request.scope["csrf"]
    return f"{request.user.name} {_digest(csrf)}" if csrf else request.user.name


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _path(tenant: str, module: str) -> str:
    return f"/review/{quote(tenant, safe=':')}/{quote(module)}"
