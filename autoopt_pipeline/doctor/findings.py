"""What a check finds, and running checks so that none can hold up the others."""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.secrets import scrub


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; what is not ok has its remedy."""

    status: Status
    what: str
    remedy: str = ""


def ok(what: str) -> Finding:
    return Finding(Status.OK, scrub(what))


def warn(what: str, remedy: str) -> Finding:
    return Finding(Status.WARN, scrub(what), scrub(remedy))


def fail(what: str, remedy: str) -> Finding:
    return Finding(Status.FAIL, scrub(what), scrub(remedy))


@dataclass(frozen=True)
class Check:
    """Something to look at. `on_silence` is what to do when it has not ended after `seconds`."""

    name: str
    look: Callable[[], Iterable[Finding]]
    on_silence: str = "see what the process is waiting for"
    seconds: float = 8


def examine(checks: Iterable[Check]) -> Iterator[tuple[str, Finding]]:
    """Run the checks one after the other. Whatever goes wrong in one is a finding of that one."""
    for check in checks:
        for finding in _examine(check):
            yield check.name, finding


def findings_of(look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a look finds, and as the last finding what it raised."""
    try:
        yield from look()
    except AutooptError as e:
        yield fail(e.what, e.remedy)
    except Exception as e:  # noqa: BLE001 - what a driver raises must not hide the checks that follow
        first_line = (str(e).splitlines() or [""])[0]
        yield fail(
            f"unexpected {type(e).__name__}: {first_line}",
            "see what it names; if nothing is wrong there, report it with this line",
        )


def _examine(check: Check) -> list[Finding]:
    found: list[Finding] = []

    def look() -> None:
        for finding in findings_of(check.look):
            found.append(finding)  # one by one: what was found stays when the next step hangs

    # A daemon thread: one that never ends does not keep the process.
    thread = threading.Thread(target=look, name=check.name, daemon=True)
    thread.start()
    thread.join(check.seconds)
    told = list(found)
    if thread.is_alive():
        told.append(fail(f"no answer within {check.seconds:g} s", check.on_silence))
    return told
