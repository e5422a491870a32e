"""Text that anybody may have written, as a terminal, a log or a chat can take it."""

import re

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and line feed: ESC and CSI move the cursor
    "\u202a-\u202e\u2066-\u2069"  # these turn the direction of reading
    "\ud800-\udfff]"  # halves of characters: no encoding takes them
)


def printable(text: str) -> str:
    """The text with U+FFFD for what would steer a terminal, show other words than there are, or cannot be encoded."""
    return _UNPRINTABLE.sub("\ufffd", text)
