"""Sends spans to Phoenix over OTLP with the same TLS settings as all other connections."""

from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

from autoopt_pipeline.tls import trusted_authorities


class PhoenixSession(requests.Session):
    """Trusts `trusted_authorities`, and keeps the result of the last request, which an exporter would only log.

    `last` is a response, an error, or None before the first request.
    """

    last: requests.Response | Exception | None = None

    def merge_environment_settings(self, *arguments: Any, **named: Any) -> Any:
        settings = super().merge_environment_settings(*arguments, **named)
        if trusted := trusted_authorities():
            settings["verify"] = trusted  # overrides REQUESTS_CA_BUNDLE, which no other client reads
        return settings

    def send(self, request: requests.PreparedRequest, **named: Any) -> requests.Response:
        try:
            response = super().send(request, **named)
        except Exception as e:
            self.last = e
            raise
        self.last = response
        return response


def phoenix_exporter(
    endpoint: str, api_key: str | None, *, timeout_seconds: float, session: PhoenixSession | None = None
) -> OTLPSpanExporter:
    """Make an exporter that sends to the Phoenix server at `endpoint`."""
    return OTLPSpanExporter(
        endpoint=f"{endpoint.rstrip('/')}/v1/traces",
        headers={"authorization": f"Bearer {api_key}"} if api_key else None,
        timeout=timeout_seconds,
        session=session or PhoenixSession(),
    )
