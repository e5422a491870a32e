"""Connections for the commands: the same stores and the same Dagster instance as the daemon's.

Importing Dagster takes a second, so only commands that need an instance import it.
"""

import getpass
import os
import sys
import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.tenants.stores.base import TenantConfigStore
from autoopt_pipeline.text import printable
from autoopt_pipeline.traces.timeouts import PEOPLE_SECONDS, Patience

if TYPE_CHECKING:
    import dagster as dg


class Screen(Console):
    """A console that prints untrusted text without control characters. Only Rich's own styles become terminal codes.

    Lines of text are not wrapped, because the terminal wraps them without breaking copied text. Tables fill its width.
    """

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        if soft_wrap is None:
            soft_wrap = all(isinstance(value, str) for value in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = Screen()


def open_connections(*, patient: bool = False) -> Connections:
    """Connect to the stores and servers in the settings. Without DAGSTER_HOME, the current folder can be the home.

    Phoenix gets a few seconds for each answer, or with `patient` the time in the settings. A message on stderr explains
    a long wait.
    """
    if home := dagster_home():
        os.environ.setdefault("DAGSTER_HOME", str(home))
    settings = load_settings()
    if home is None and "AUTOOPT_HOME" not in os.environ and not (settings.config_store_url and settings.artifacts_url):
        raise InvalidSettings(
            "there is no instance in this folder, and no store is configured",
            "set DAGSTER_HOME, or go to the folder with dagster.yaml, or set AUTOOPT_CONFIG_STORE_URL and "
            "AUTOOPT_ARTIFACTS_URL",
        )
    return Connections(settings, Patience(None if patient else PEOPLE_SECONDS, _print_once))


_printed: set[str] = set()
_print_lock = threading.Lock()


def _print_once(line: str) -> None:
    """Print a line to stderr, unless this or another thread has printed it before."""
    with _print_lock:
        if line not in _printed:
            _printed.add(line)
            print(printable(line), file=sys.stderr, flush=True)


def no_tenants(store: TenantConfigStore) -> str:
    """The message for a store without tenants. It names the store, because a wrong address looks the same."""
    return f"there are no tenants in {store.name}; 'autoopt tenants add' adds one"


def current_user() -> str:
    """The name of the operating system's user, for records of manual acts; the user's number if there is no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # OSError from Python 3.13 on
        return f"uid {os.getuid()}"


def dagster_home() -> Path | None:
    """DAGSTER_HOME, or the current folder if it contains a `dagster.yaml`; otherwise None."""
    configured = os.environ.get("DAGSTER_HOME")
    home = Path(configured).absolute() if configured else Path.cwd()
    if (home / "dagster.yaml").exists():
        return home
    if configured:
        raise InvalidSettings(f"DAGSTER_HOME is {home}, without a dagster.yaml", "set it to the instance's folder")
    return None


@contextmanager
def instance() -> "Generator[dg.DagsterInstance, None, None]":
    """Open the Dagster instance. Raises `InvalidSettings` if there is none."""
    from autoopt_pipeline.run_history.instance import open_instance

    home = dagster_home()
    if home is None:
        raise InvalidSettings("no Dagster instance", "set DAGSTER_HOME, or go to the folder with dagster.yaml")
    with open_instance(home) as opened:
        yield opened
