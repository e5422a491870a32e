"""A stable hash of text as a number, the same on every machine and in every release."""

import hashlib


def unit_interval(text: str) -> float:
    """Map a text to a number from 0 to 1. Different texts are evenly distributed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
