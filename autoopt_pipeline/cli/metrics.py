"""`autoopt metrics`: serves metrics for Prometheus."""

from typing import Annotated

import typer

from autoopt_pipeline.cli.context import console, instance
from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.modules.catalog import modules


def metrics(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 9464,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 in a pod.")] = "127.0.0.1",
    max_tenants: Annotated[int, typer.Option(min=0, help="Most tenants with a label of their own.")] = 1000,
) -> None:
    """Serve metrics for Prometheus until Ctrl-C, read from Dagster's records (docs/metrics.md)."""
    from prometheus_client import CollectorRegistry, start_http_server

    from autoopt_pipeline.monitoring.prometheus import Exporter

    registry = CollectorRegistry()
    with instance() as opened:
        registry.register(Exporter(opened, modules(), max_tenants=max_tenants))
        try:
            server, thread = start_http_server(port, addr=host, registry=registry)
        except OSError as e:
            raise InvalidSettings(f"cannot listen on {host}:{port}: {e.strerror}", "choose another --port") from e
        console.print(f"metrics at http://{host}:{port}/metrics, until Ctrl-C")
        try:
            thread.join()
        finally:
            server.shutdown()
