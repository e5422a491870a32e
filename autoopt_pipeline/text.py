"""Text for people: durations, percentages, untrusted text on one harmless line, suggestions for mistyped names."""

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta

_UNITS = ((86400, "days"), (3600, "h"), (60, "min"))

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and line feed: ESC and CSI move the cursor
    "\u202a-\u202e\u2066-\u2069"  # these change the direction of the text
    "\ud800-\udfff]"  # halves of surrogate pairs: UTF-8 cannot encode them
)


def duration(span: timedelta) -> str:
    """`3 days`, `14 h`, `5 min` or `40 s`: rounded to the largest unit that fits at least twice."""
    seconds = span.total_seconds()
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(moment: datetime, now: datetime) -> str:
    """`5 min ago`, or `in 5 min` for a moment in the future."""
    return f"{duration(now - moment)} ago" if moment <= now else f"in {duration(moment - now)}"


def amount(number: float) -> str:
    """`950`, `9,500`, `12.4 k` or `1.2 M`: as many digits as people read."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{number / scale:.1f} {unit}"
    return f"{number:,.0f}"


def percent(score: float | None) -> str:
    """`63.0` for 0.63, and `?` for an unknown score."""
    return "?" if score is None else f"{100 * score:.1f}"


def printable(text: str) -> str:
    """Replace characters that control a terminal, reorder the text or cannot be encoded with U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str, *, full: bool = False, length: int = 160) -> str:
    """Put the text of a user or a model on one line, cut to `length` characters unless `full`."""
    line = printable(" ".join(text.split()))
    return line if full or len(line) <= length else f"{line[: length - 1]}…"


def listed_counts(counts: Mapping[str, int]) -> str:
    """`3 too long, 1 empty`; "" without counts."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())


def listed_unread(unread: Mapping[str, Mapping[str, int]]) -> str:
    """Counts of unreadable answers by program: `incumbent 3 truncated, 1 empty; candidate 2 refused`."""
    return "; ".join(f"{program} {listed_counts(counts)}" for program, counts in unread.items() if counts)


def did_you_mean(text: str, known: Iterable[str], listed_as: str = "") -> str:
    """`did you mean 'acme'? ` if a known name is similar, else "". With `listed_as`, the list of all names follows."""
    names = list(known)
    lower = {name.lower(): name for name in names}  # the case of letters does not matter
    close = difflib.get_close_matches(text.lower(), lower, n=1, cutoff=0.5)
    hint = f"did you mean '{lower[close[0]]}'? " if close else ""
    return f"{hint}{listed_as}: {', '.join(names)}" if listed_as else hint


def iso(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC; None stays None."""
    return moment.astimezone(UTC).isoformat() if moment else None
