"""The overview: every module of every tenant that the user may see."""

import dagster as dg
from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.dashboard.context import dashboard_of
from autoopt_pipeline.dashboard.overview_query import Query, select
from autoopt_pipeline.dashboard.tasks import falls_of, tasks_of
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.status.score_trend import sparkline
from autoopt_pipeline.status.week import summarize

COLUMNS = (
    ("health", "State"),
    ("tenant", "Tenant"),
    ("module", "Module"),
    ("new", "New traces"),
    ("score", "Serves"),
    ("verdict", "Last verdict"),
    ("next", "Next check"),
)


def overview(request: Request) -> Response:
    return _board(request, "overview.html")


def overview_board(request: Request) -> Response:
    """The parts of the overview that it refreshes."""
    return _board(request, "overview_parts.html")


def _board(request: Request, template: str) -> Response:
    dashboard, user = dashboard_of(request), request.user
    snapshot, trouble = dashboard.statuses.latest()
    visible = [status for status in snapshot.standings if user.sees(status.tenant_id)] if snapshot else []
    page = select(visible, Query.read(request.query_params))
    trends, trend_error = {}, ""
    try:
        if snapshot and not snapshot.tenants_left:
            trends = dashboard.trends.trends(dashboard.instance, page.rows)
    except dg.DagsterError as e:
        trend_error = str(e)
    return render(
        request,
        template,
        snapshot=snapshot,
        trouble=trouble,
        silent=dashboard.counts.trouble,
        trend_error=trend_error,
        board=page,
        rows=[(row, sparkline(trends.get((row.tenant_id, row.module), ()))) for row in page.rows],
        columns=COLUMNS,
        tasks=tasks_of(visible),
        falls=falls_of(visible),
        week=summarize(snapshot.week, user.sees) if snapshot and snapshot.week else None,
        sensors=snapshot.sensors if snapshot and user.sees_all else (),
    )
