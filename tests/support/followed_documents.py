"""Following a document as a reader does: its files are written, its commands run, its packages installed."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.support.project import PROJECT


def environment(installed: Path, **settings: str) -> dict[str, str]:
    """What commands of a document meet: pip works offline, and into a folder of the test's own."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{PROJECT}:{installed}",
        "AUTOOPT_SETTLING_SECONDS": "0",
        "COLUMNS": "200",
        "PIP_TARGET": str(installed),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this one the wrong way round
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **settings,
    }


def follow(blocks: Iterable[tuple[str, str, str]], home: Path, env: dict[str, str]) -> str:
    """Write the files and run the commands of blocks (kind, file, text) in `home`, in their order, as one script.

    Returns what they print.
    """
    script = ["set -e"]
    for kind, file, text in blocks:
        if file:
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            (home / file).write_text(text)
        else:
            assert kind == "sh"
            script.append(text)
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=home, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
