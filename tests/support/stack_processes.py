"""Finding the processes of a local stack."""

from pathlib import Path

import psutil


def servers(home: Path) -> set[int]:
    """Processes of the stack that `autoopt` started in a folder."""
    found = set()
    for process in psutil.process_iter():
        try:
            if "AUTOOPT_STACK" in (env := process.environ()) and any(str(home) in value for value in env.values()):
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found
