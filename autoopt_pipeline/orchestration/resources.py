"""Connections as a Dagster resource."""

import dagster as dg

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.settings import load_settings


class Services(dg.ConfigurableResource):
    """Connects to what the process settings (`AUTOOPT_*`) name. It has no field, so Dagster stores no secret."""

    def connect(self) -> Connections:
        return Connections(load_settings())
