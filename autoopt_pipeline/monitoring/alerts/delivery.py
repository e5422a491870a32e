"""Bringing alerts to those who listen, over HTTP. An address is a secret here: whoever has it can post."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_before_delay, wait_random_exponential

from autoopt_pipeline.errors import AlertNotDelivered, InvalidSettings
from autoopt_pipeline.monitoring.alerts.formats import SIGNATURE_HEADER, signature, slack_body, webhook_body
from autoopt_pipeline.monitoring.alerts.models import Alert
from autoopt_pipeline.settings import Settings

_TIMEOUT_SECONDS = 5
_ATTEMPTS = 3

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
    """Those that are configured. Raises `InvalidSettings` for what cannot be an address."""
    found = []
    if settings.alert_webhook_url:
        found.append(
            Receiver(
                "webhook",
                "AUTOOPT_ALERT_WEBHOOK_URL",
                settings.alert_webhook_url,
                webhook_body,
                settings.alert_webhook_secret,
            )
        )
    if settings.alert_slack_url:
        found.append(Receiver("slack", "AUTOOPT_ALERT_SLACK_URL", settings.alert_slack_url, slack_body))
    for receiver in found:
        try:
            url = httpx.URL(receiver.url.get_secret_value())
        except httpx.InvalidURL:
            url = httpx.URL()
        if url.scheme not in {"http", "https"} or not url.host:
            raise InvalidSettings(
                f"environment variable {receiver.setting} is no http:// or https:// address",
                f"correct or unset {receiver.setting}",
            )
    return found


def send(receiver: Receiver, alert: Alert) -> int:
    """Post the alert, and return the receiver's HTTP status. Gives up within some ten seconds.

    Raises `AlertNotDelivered`, which names neither the address nor what was answered.
    """
    body = receiver.body(alert)
    headers = {"Content-Type": "application/json"}
    if receiver.secret:
        headers[SIGNATURE_HEADER] = signature(body, receiver.secret.get_secret_value())
    try:
        for attempt in Retrying(
            stop=stop_after_attempt(_ATTEMPTS) | stop_before_delay(_TIMEOUT_SECONDS),
            wait=wait_random_exponential(multiplier=0.2, max=2),
            retry=retry_if_exception(_may_pass),
            reraise=True,
        ):
            # The body of the answer is not read: nobody needs it, and it may never end.
            with (
                attempt,
                httpx.stream(
                    "POST", receiver.url.get_secret_value(), content=body, headers=headers, timeout=_TIMEOUT_SECONDS
                ) as response,
            ):
                response.raise_for_status()
        return response.status_code
    except httpx.HTTPStatusError as e:
        trouble = f"answered HTTP {e.response.status_code}"
    except httpx.HTTPError as e:
        trouble = f"does not answer ({type(e).__name__})"
    raise AlertNotDelivered(f"{receiver.name} {trouble}", f"check {receiver.setting} and what listens there")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, httpx.TransportError)
