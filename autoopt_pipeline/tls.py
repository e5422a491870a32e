"""Custom certificate authorities for all connections, by OpenSSL's own variables SSL_CERT_FILE and SSL_CERT_DIR.

Phoenix's client, feedback, alerts, DSPy's language models, Redis and GCS read these variables themselves. Code that
uses `requests` gets the path from here: the exporter of spans, and the client of Dagster's API.
"""

import os
import ssl
from functools import cache

from autoopt_pipeline.errors import InvalidSettings


def trusted_authorities() -> str | None:
    """The file (SSL_CERT_FILE) or folder (SSL_CERT_DIR) of the trusted authorities; None for the system's.

    Raises `InvalidSettings` if the file contains no authority.
    """
    file = os.environ.get("SSL_CERT_FILE")
    if file and (problem := _file_problem(file)):
        raise InvalidSettings(
            f"environment variable SSL_CERT_FILE: {file[:200]!r} holds no authorities: {problem}",
            "name a readable file with all trusted authorities, or unset it",
        )
    return file or os.environ.get("SSL_CERT_DIR") or None


@cache  # reading a system's authorities takes 0.1 s
def _file_problem(file: str) -> str | None:
    try:
        ssl.create_default_context(cafile=file)
    except OSError as e:  # ssl.SSLError is one too
        return "no certificate in PEM" if isinstance(e, ssl.SSLError) else e.strerror
    return None
