"""A real Phoenix server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PhoenixServer:
    """A real Phoenix server, and the database that it keeps everything in."""

    endpoint: str
    database_url: str
