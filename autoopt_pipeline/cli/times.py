"""Times and durations in words."""

from datetime import datetime, timedelta

_UNITS = ((86400, "days"), (3600, "h"), (60, "min"))


def duration(span: timedelta) -> str:
    """`3 days`, `14 h`, `5 min` or `40 s`: the largest unit of which there are two, rounded."""
    seconds = span.total_seconds()
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(moment: datetime, now: datetime) -> str:
    """`5 min ago`, or what is left when the moment is to come: `in 5 min`."""
    return f"{duration(now - moment)} ago" if moment <= now else f"in {duration(moment - now)}"
