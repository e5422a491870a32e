"""Compares the clock of another machine with ours."""

from datetime import datetime, timedelta

from autoopt_pipeline.doctor.findings import Finding, ok, warn

# HTTP dates and object stores have whole seconds, and a server may reuse a date for one more second.
_RESOLUTION = timedelta(seconds=2)


def compare_clocks(whose: str, theirs: datetime, ours: datetime, allowed: timedelta) -> Finding:
    """Compare two clocks. `theirs` and `ours` are UTC and were read at the same moment."""
    ahead = theirs - ours
    difference = max(abs(ahead) - _RESOLUTION, timedelta())
    if difference <= allowed:
        return ok(f"the clock of {whose} agrees with this machine's")
    direction = "ahead of" if ahead > timedelta() else "behind"
    return warn(
        f"the clock of {whose} is {difference.total_seconds():.0f} s {direction} this machine's, "
        f"{allowed.total_seconds():.0f} s are allowed for",
        "set both clocks (NTP), or raise AUTOOPT_SETTLING_SECONDS: newer traces would be missed",
    )
