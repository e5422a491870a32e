"""Metrics as Prometheus reads them."""

import dagster as dg
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from autoopt_pipeline.monitoring.prometheus import Exporter


def exporter(instance: dg.DagsterInstance, max_tenants: int = 10) -> Exporter:
    return Exporter(instance, ["routing", "modality"], max_tenants=max_tenants)


def parsed(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(source: Exporter) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(source)
    return parsed(generate_latest(registry).decode())
