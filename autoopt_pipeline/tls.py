"""Certificate authorities of one's own: one setting for all connections, which is OpenSSL's own, SSL_CERT_FILE.

Phoenix's client, feedback, alerts, DSPy's language models, Redis and GCS go by it without being told. What stands on
`requests` is told: the exporter of spans, and the client of Dagster's API.
"""

import os
import ssl
from functools import cache

from autoopt_pipeline.errors import InvalidSettings


def trusted_authorities() -> str | None:
    """The file (SSL_CERT_FILE) or folder (SSL_CERT_DIR) of the authorities to trust; None for those that are usual.

    Raises `InvalidSettings` when the file holds none.
    """
    file = os.environ.get("SSL_CERT_FILE")
    if file and (why := _why_unfit(file)):
        raise InvalidSettings(
            f"environment variable SSL_CERT_FILE: {file[:200]!r} holds no authorities: {why}",
            "name a readable file with all that are to be trusted, or unset it",
        )
    return file or os.environ.get("SSL_CERT_DIR") or None


@cache  # reading those of a whole system takes 0.1 s
def _why_unfit(file: str) -> str | None:
    try:
        ssl.create_default_context(cafile=file)
    except OSError as e:  # as ssl.SSLError is
        return "no certificate in PEM" if isinstance(e, ssl.SSLError) else e.strerror
    return None
