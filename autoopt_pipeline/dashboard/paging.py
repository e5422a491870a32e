"""Pages of long lists."""

PAGE = 50
"""Rows on a page."""


def page_number(text: str) -> int:
    """The page number in a URL, at least 1; 1 when the text is no number."""
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 9 else 1


def pages_of(count: int) -> int:
    """The number of pages for a number of rows. An empty list has one page."""
    return max(1, -(-count // PAGE))
