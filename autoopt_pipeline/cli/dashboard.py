"""`autoopt dashboard`: serves the web pages until Ctrl-C."""

from typing import Annotated

import typer

from autoopt_pipeline.cli.context import console, current_user, instance, open_connections
from autoopt_pipeline.errors import StackFailed


def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on; other machines need access rules.")] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
) -> None:
    """Serve web pages that show the status of tenants' modules, and let people decide about versions."""
    from autoopt_pipeline.dashboard.auth import open_access
    from autoopt_pipeline.dashboard.server import serve

    connections = open_connections()
    access = open_access(connections.settings, host=host, who=current_user())
    with instance() as opened:
        console.print(f"dashboard  http://{f'[{host}]' if ':' in host else host}:{port}  Ctrl-C stops it")
        if not serve(connections, opened, access, host=host, port=port):
            raise StackFailed(f"the dashboard could not listen on {host}, port {port}", "choose another with --port")
