"""The server of the web application."""

import asyncio
import socket

import dagster as dg
import uvicorn

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.dashboard.app import create_app
from autoopt_pipeline.dashboard.auth import Access
from autoopt_pipeline.dashboard.context import open_dashboard


def serve(parts: Connections, instance: dg.DagsterInstance, access: Access, *, host: str, port: int) -> bool:
    """Serve until a signal stops the process. Returns False when the address cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError:
            return False
        config = uvicorn.Config(
            create_app(open_dashboard(parts, instance, access)),
            log_level="warning",
            access_log=False,
            server_header=False,
            # The address of the connection identifies the proxy; a header could claim any address.
            proxy_headers=False,
        )
        asyncio.run(uvicorn.Server(config).serve([listening]))
    return True
