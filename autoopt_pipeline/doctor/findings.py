"""Findings of health checks, and an executor that isolates the checks from each other."""

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
    """Result of one check. Warnings and failures have a remedy."""

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
    """A health check. `on_silence` is the remedy if it does not end within `seconds`."""

    name: str
    look: Callable[[], Iterable[Finding]]
    on_silence: str = "see what the process is waiting for"
    seconds: float = 8


def examine(checks: Iterable[Check]) -> Iterator[tuple[str, Finding]]:
    """Run the checks one after the other. An error in a check becomes a finding of that check."""
    for check in checks:
        for finding in _examine(check):
            yield check.name, finding


def findings_of(look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield a check's findings. If it raises, the error is the last finding."""
    try:
        yield from look()
    except AutooptError as e:
        yield fail(e.what, e.remedy)
    except Exception as e:  # noqa: BLE001 - a driver's error must not prevent the following checks
        first_line = (str(e).splitlines() or [""])[0]
        yield fail(
            f"unexpected {type(e).__name__}: {first_line}",
            "check what the error names; if that is in order, report this line",
        )


def _examine(check: Check) -> list[Finding]:
    findings: list[Finding] = []

    def run() -> None:
        for finding in findings_of(check.look):
            findings.append(finding)  # one by one, so that findings remain if the next step hangs

    # A daemon thread, because a check that hangs must not keep the process alive.
    thread = threading.Thread(target=run, name=check.name, daemon=True)
    thread.start()
    thread.join(check.seconds)
    complete = list(findings)
    if thread.is_alive():
        complete.append(fail(f"no answer within {check.seconds:g} s", check.on_silence))
    return complete
