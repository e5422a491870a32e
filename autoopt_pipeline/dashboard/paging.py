"""Long lists, a page at a time."""

PAGE = 50
"""Rows of a page."""


def page_number(text: str) -> int:
    """The page that an address asks for, from 1 on; the first where it asks for none."""
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 9 else 1


def pages_of(count: int) -> int:
    """How many pages so many rows fill; an empty list is a page too."""
    return max(1, -(-count // PAGE))
