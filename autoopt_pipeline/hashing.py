"""A stable place between 0 and 1 for any text: the same on every machine, in every release."""

import hashlib


def unit_interval(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone, evenly spread over different texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
