"""Sends alerts over HTTP: as JSON to a webhook, and in the format of Slack's incoming webhooks.

A receiver's address is a secret, because whoever has it can post.
"""

import hashlib
import hmac
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from pydantic import SecretStr

from autoopt_pipeline.errors import AlertNotDelivered, AlertRefused, InvalidSettings
from autoopt_pipeline.monitoring.alerts.models import Affected, Alert, Kind
from autoopt_pipeline.settings import Settings

SIGNATURE_HEADER = "X-Autoopt-Signature"
"""`sha256=` and the HMAC-SHA256 of the body in hexadecimal, under AUTOOPT_ALERT_WEBHOOK_SECRET."""

_TIMEOUT_SECONDS = 5

_TRY_AGAIN = {408, 425, 429}
"""The statuses from 400 to 499 that refuse nothing for good."""

_SLACK_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_SLACK_SIGNS = {
    Kind.UNREACHABLE: ":rotating_light:",
    Kind.ROLLED_BACK: ":rewind:",
    Kind.QUALITY_FELL: ":chart_with_downwards_trend:",
    Kind.RUN_FAILED: ":warning:",
    Kind.FAILING_REPEATEDLY: ":rotating_light:",
    Kind.TEST: ":wave:",
}

# httpx logs every address it asks.
logging.getLogger("httpx").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Receiver:
    """Where alerts go, in its own format. `setting` names the variable that has the address."""

    name: str
    setting: str
    url: SecretStr
    body: Callable[[Alert], bytes]
    secret: SecretStr | None = None


def receivers(settings: Settings) -> list[Receiver]:
    """The configured ones. Raises `InvalidSettings` where an address is none."""
    configured = []
    if url := settings.alert_webhook_url:
        secret = settings.alert_webhook_secret
        configured.append(Receiver("webhook", "AUTOOPT_ALERT_WEBHOOK_URL", url, webhook_body, secret))
    if url := settings.alert_slack_url:
        configured.append(Receiver("slack", "AUTOOPT_ALERT_SLACK_URL", url, slack_body))
    for receiver in configured:
        try:
            url = httpx.URL(receiver.url.get_secret_value())
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in {"http", "https"} or not url.host:
            raise InvalidSettings(
                f"environment variable {receiver.setting} is no http:// or https:// address",
                f"correct or unset {receiver.setting}",
            )
    return configured


def send(receiver: Receiver, alert: Alert) -> int:
    """Post the alert once, and return the receiver's HTTP status.

    Raises `AlertRefused` where the same alert would be refused again, else `AlertNotDelivered`. Neither names the
    address or what the receiver answered.
    """
    body = receiver.body(alert)
    headers = {"Content-Type": "application/json"}
    if receiver.secret:
        headers[SIGNATURE_HEADER] = signature(body, receiver.secret.get_secret_value())
    remedy = f"check {receiver.setting} and what listens there"
    try:
        # The answer's body is not read: it may never end.
        with httpx.stream(
            "POST", receiver.url.get_secret_value(), content=body, headers=headers, timeout=_TIMEOUT_SECONDS
        ) as response:
            status = response.status_code
    except httpx.HTTPError as e:
        raise AlertNotDelivered(f"{receiver.name} does not answer ({type(e).__name__})", remedy) from None
    if 200 <= status < 300:
        return status
    refused = 400 <= status < 500 and status not in _TRY_AGAIN
    raise (AlertRefused if refused else AlertNotDelivered)(f"{receiver.name} answered HTTP {status}", remedy)


def webhook_body(alert: Alert) -> bytes:
    return alert.model_dump_json().encode()


def signature(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def slack_body(alert: Alert) -> bytes:
    lines = [f"{_SLACK_SIGNS[alert.kind]} *{_escaped(alert.summary)}*"]
    if alert.detail:
        lines.append(_escaped(alert.detail))
    lines += [f"• {_slack_line(affected, alert.detail)}" for affected in alert.affected]
    if more := alert.affected_total - len(alert.affected):
        lines.append(f"and {more} more")
    return json.dumps({"text": "\n".join(lines)}).encode()


def _slack_line(affected: Affected, shown: str) -> str:
    name = _escaped(f"{affected.tenant}/{affected.module}")
    linked = f"<{affected.url}|{name}>" if affected.url else name
    return linked if affected.detail in {"", shown} else f"{linked}: {_escaped(affected.detail)}"


def _escaped(text: str) -> str:
    """Text that makes no link and calls nobody: see "Formatting text for app surfaces" in Slack's documentation."""
    return text.translate(_SLACK_ESCAPES)
