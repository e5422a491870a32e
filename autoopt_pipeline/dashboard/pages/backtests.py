"""The page of a module's backtests."""

from starlette.requests import Request
from starlette.responses import Response

from autoopt_pipeline.dashboard.context import dashboard_of, visible_tenant
from autoopt_pipeline.dashboard.module_results import backtest_over_time
from autoopt_pipeline.dashboard.templating import render
from autoopt_pipeline.registry.backtests import stored_backtests
from autoopt_pipeline.registry.module_versions import read_programs
from autoopt_pipeline.status.backtest_rows import rows_of, summary_of, variants_of


def backtest_page(request: Request) -> Response:
    """The newest backtest, or the one that was made at the time in the query, and how to start one."""
    files, tenant, module = dashboard_of(request).parts.files, visible_tenant(request), request.path_params["module"]
    read_programs(files, tenant, module)  # refuses what is no module
    stored = {backtest.at.isoformat(): backtest for backtest in stored_backtests(files, tenant, module)}
    made = request.query_params.get("made", "")
    shown = stored.get(made) or next(iter(stored.values()), None)
    variants = variants_of(shown) if shown else {}
    return render(
        request,
        "backtest.html",
        tenant=tenant,
        module=module,
        shown=shown,
        variants=variants,
        charts={name: backtest_over_time(played) for name, played in variants.items()},
        rows=list(rows_of(shown)) if shown else [],
        totals=[summary_of(played) for played in variants.values()],
        others=[(backtest.at, at) for at, backtest in stored.items() if backtest is not shown],
    )
