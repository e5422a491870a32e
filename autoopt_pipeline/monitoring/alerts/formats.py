"""An alert as the bodies of requests: JSON for any webhook, and what Slack's incoming webhooks take."""

import hashlib
import hmac
import json

from autoopt_pipeline.monitoring.alerts.models import Affected, Alert, Kind

SIGNATURE_HEADER = "X-Autoopt-Signature"
"""`sha256=` and the HMAC-SHA256 of the body in hexadecimal, under AUTOOPT_ALERT_WEBHOOK_SECRET."""

_SLACK_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_SIGNS = {
    Kind.RUN_FAILED: ":warning:",
    Kind.FAILING_REPEATEDLY: ":rotating_light:",
    Kind.RECOVERED: ":white_check_mark:",
    Kind.ROLLED_BACK: ":rewind:",
    Kind.UNREACHABLE: ":rotating_light:",
    Kind.REACHABLE: ":white_check_mark:",
    Kind.TEST: ":wave:",
}


def webhook_body(alert: Alert) -> bytes:
    return alert.model_dump_json().encode()


def signature(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def slack_body(alert: Alert) -> bytes:
    lines = [f"{_SIGNS[alert.kind]} *{_escaped(alert.summary)}*"]
    if alert.detail:
        lines.append(_escaped(alert.detail))
    lines += [f"• {_listed(affected, alert.detail)}" for affected in alert.affected]
    if more := alert.affected_total - len(alert.affected):
        lines.append(f"and {more} more")
    return json.dumps({"text": "\n".join(lines)}).encode()


def _listed(affected: Affected, said: str) -> str:
    name = _escaped(f"{affected.tenant}/{affected.module}")
    linked = f"<{affected.url}|{name}>" if affected.url else name
    return linked if affected.detail in {"", said} else f"{linked}: {_escaped(affected.detail)}"


def _escaped(text: str) -> str:
    """Text that makes no link and calls nobody: see "Formatting text for app surfaces" in Slack's documentation."""
    return text.translate(_SLACK_ESCAPES)
