"""What the commands work with: the same stores and the same Dagster instance as the daemon.

Dagster takes a second to import, so only commands that need an instance do.
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
    """A console on which text stays text, whoever wrote it; only Rich's own styles reach the terminal as codes.

    Lines of text are not wrapped, for the terminal does that without breaking what is copied. Tables are as wide as it.
    """

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        if soft_wrap is None:
            soft_wrap = all(isinstance(each, str) for each in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


console = Screen()


def connections(*, patient: bool = False) -> Connections:
    """What the settings name. Without DAGSTER_HOME, a checkout that is the current folder is the home.

    Phoenix is given a few seconds for each answer, or with `patient` as long as the settings say. Who waits is told.
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
    return Connections(settings, Patience(None if patient else PEOPLE_SECONDS, _tell))


_told: set[str] = set()
_telling = threading.Lock()


def _tell(line: str) -> None:
    """Each line once, whichever threads have it to tell."""
    with _telling:
        if line not in _told:
            _told.add(line)
            print(printable(line), file=sys.stderr, flush=True)


def no_tenants(store: TenantConfigStore) -> str:
    """What is said where a store has no tenants. A wrong address looks the same, so it is named."""
    return f"there are no tenants in {store.name}; 'autoopt tenants add' adds one"


def who() -> str:
    """The user, as records of what was done by hand name them; where the system has no name for them, their number."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # OSError from Python 3.13 on
        return f"uid {os.getuid()}"


def dagster_home() -> Path | None:
    """DAGSTER_HOME, or the current folder when it holds a `dagster.yaml`. None where there is no instance."""
    configured = os.environ.get("DAGSTER_HOME")
    home = Path(configured).absolute() if configured else Path.cwd()
    if (home / "dagster.yaml").exists():
        return home
    if configured:
        raise InvalidSettings(f"DAGSTER_HOME is {home}, where no dagster.yaml is", "set it to the instance's folder")
    return None


@contextmanager
def instance() -> "Generator[dg.DagsterInstance, None, None]":
    """The Dagster instance. Raises `InvalidSettings` where there is none."""
    from autoopt_pipeline.run_history.instance import open_instance

    home = dagster_home()
    if home is None:
        raise InvalidSettings("no Dagster instance", "set DAGSTER_HOME, or go to the folder with dagster.yaml")
    with open_instance(home) as opened:
        yield opened
