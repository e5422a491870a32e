"""`autoopt dashboard`: the web pages, until Ctrl-C."""

from typing import Annotated

import typer

from autoopt_pipeline.cli.context import connections, console, instance, who
from autoopt_pipeline.errors import StackFailed


def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine need access rules.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
) -> None:
    """Serve the pages that show how tenants' modules stand, and let people decide about them."""
    from autoopt_pipeline.dashboard.auth import open_access
    from autoopt_pipeline.dashboard.server import serve

    parts = connections()
    access = open_access(parts.settings, host=host, who=who())
    with instance() as opened:
        console.print(f"dashboard  http://{f'[{host}]' if ':' in host else host}:{port}  Ctrl-C stops it")
        if not serve(parts, opened, access, host=host, port=port):
            raise StackFailed(f"the dashboard could not listen on {host}, port {port}", "choose another with --port")
