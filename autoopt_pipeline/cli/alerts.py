"""`autoopt alerts`: whether the receivers of alerts can be reached."""

import time
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.errors import AlertNotDelivered, InvalidSettings
from autoopt_pipeline.monitoring.alerts.delivery import receivers, send
from autoopt_pipeline.monitoring.alerts.models import Kind, make_alert
from autoopt_pipeline.settings import load_settings

app = typer.Typer(help="Receivers of alerts about failed runs, rollbacks and outages.", no_args_is_help=True)


@app.command()
def test(
    json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/alerts.md lists the fields.")] = False,
) -> None:
    """Send a test alert to every configured receiver, and show the answers.

    Exit status 2 when a receiver did not take it.
    """
    configured = receivers(load_settings())
    if not configured:
        raise InvalidSettings(
            "no receiver of alerts is configured",
            "set AUTOOPT_ALERT_WEBHOOK_URL or AUTOOPT_ALERT_SLACK_URL (docs/alerts.md)",
        )
    alert = make_alert(Kind.TEST, datetime.now(UTC), "autoopt sends its alerts here")
    results = []
    for receiver in configured:
        began, status, error = time.monotonic(), None, None
        try:
            status = send(receiver, alert)
        except AlertNotDelivered as e:
            error = str(e)
        seconds = round(time.monotonic() - began, 3)
        results.append({"receiver": receiver.name, "status": status, "error": error, "seconds": seconds})
    if json:
        console.print_json(data={"id": alert.id, "receivers": results})
    else:
        for result in results:
            if result["error"]:
                console.print(f"[red]not delivered[/red] {escape(str(result['error']))}")
            else:
                answered = f"{result['receiver']} answered HTTP {result['status']}"
                console.print(f"[green]delivered[/green] {answered} in {result['seconds']:.2f} s")
    if any(result["error"] for result in results):
        raise typer.Exit(2)
