"""The installed modules: built in, plugged in by other packages, or declared in a file.

A package registers a `ModuleSpec` with an entry point of the group `autoopt_pipeline.modules`. The setting
`AUTOOPT_MODULES_FILE` names the file.

A process loads the modules once. The code location has an asset for each, so Dagster has to reload it for a new one;
other long-running processes can call `read_modules_again`.
"""

import importlib
import logging
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points

from autoopt_pipeline.errors import AutooptError, UnknownModule
from autoopt_pipeline.modules.builtin.cross_modal import CROSS_MODAL
from autoopt_pipeline.modules.builtin.modality import MODALITY
from autoopt_pipeline.modules.builtin.routing import ROUTING
from autoopt_pipeline.modules.builtin.unified import UNIFIED
from autoopt_pipeline.modules.builtin.workflow import WORKFLOW
from autoopt_pipeline.modules.spec import ModuleSpec
from autoopt_pipeline.modules.yaml_modules import declared_modules
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.text import did_you_mean

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "autoopt_pipeline.modules"
_BUILT_IN = (MODALITY, ROUTING, CROSS_MODAL, WORKFLOW, UNIFIED)
# Module names are asset keys, configuration keys and folder names.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


# Names that Dagster reserves. They are copied, because importing Dagster takes a second.
KEPT_NAMES = frozenset(
    {
        "and", "arg_dict", "as", "assert", "async", "await", "bool", "break", "class", "conf", "config", "context",
        "continue", "def", "del", "dict", "elif", "else", "except", "finally", "float", "for", "from", "global", "if",
        "import", "in", "input", "input_arg_dict", "int", "is", "lambda", "meta", "nonlocal", "not", "or", "output",
        "output_arg_dict", "pass", "raise", "return", "str", "try", "type", "while", "with", "yield",
    }
)  # fmt: skip


@cache
def modules() -> dict[str, ModuleSpec]:
    """Return all installed modules by name.

    Raises `UnknownModule` if a plug-in does not load or a name is invalid or taken, and `InvalidSettings` if the file
    of declared modules is invalid.
    """
    return _read_modules()


def read_modules_again() -> None:
    """Reload the modules. If that fails, the known ones stay."""
    importlib.invalidate_caches()
    try:
        changed = _read_modules() != modules()
    except AutooptError as e:
        logger.warning("modules cannot be read again: %s", e)
        return
    if changed:
        modules.cache_clear()


def _read_modules() -> dict[str, ModuleSpec]:
    specs = {spec.name: spec for spec in _BUILT_IN}
    for where, spec in (*_plugged_in(), *_declared()):
        if not _NAME.fullmatch(spec.name):
            raise UnknownModule(
                f"{where}: {spec.name[:60]!r} is no module name",
                "use up to 40 lower-case letters, digits and '_', a letter first",
            )
        if spec.name in KEPT_NAMES:
            raise UnknownModule(f"{where}: Dagster keeps the name {spec.name!r} to itself", "rename the module")
        if spec.name in specs:
            raise UnknownModule(f"{where}: module {spec.name!r} exists already", "rename it")
        specs[spec.name] = spec
    return specs


def _plugged_in() -> Iterator[tuple[str, ModuleSpec]]:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        where = f"module plug-in {entry.value!r}"
        try:
            spec = entry.load()
        except Exception as e:
            raise UnknownModule(f"{where} cannot be loaded: {e}", "mend or uninstall it") from e
        if not isinstance(spec, ModuleSpec):
            raise UnknownModule(f"{where} is no ModuleSpec", "mend or uninstall it")
        yield where, spec


def _declared() -> Iterator[tuple[str, ModuleSpec]]:
    if path := load_settings().modules_file:
        for spec in declared_modules(path.absolute()):
            yield f"AUTOOPT_MODULES_FILE {path.absolute()}", spec


def module_names() -> tuple[str, ...]:
    return tuple(modules())


def default_modules() -> tuple[str, ...]:
    """Modules that a tenant's configuration lists by default."""
    return tuple(name for name, spec in modules().items() if spec.scheduled_by_default)


def get_module(name: str) -> ModuleSpec:
    """Return a module by name. Raises `UnknownModule`, which suggests the nearest name."""
    spec = modules().get(name)
    if spec is None:
        raise UnknownModule(f"unknown module {name[:60]!r}", did_you_mean(name, modules(), "installed modules"))
    return spec


def missing_module(name: str) -> UnknownModule:
    """Return the error for a module that a configuration names and this process does not know, with a remedy."""
    if name in _names_installed_now():
        return UnknownModule(
            f"module {name[:60]!r} was installed after this process began", "reload the code location, or restart it"
        )
    return UnknownModule(
        f"module {name[:60]!r} is not installed here",
        f"{did_you_mean(name, modules())}install it and reload the code location, or take it out with "
        f"'autoopt config unset TENANT modules.{name[:60]}'",
    )


def _names_installed_now() -> set[str]:
    """Return the names without loading, because a package installed after this process started may not load in it."""
    importlib.invalidate_caches()
    names = {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    try:
        return names | {spec.name for _, spec in _declared()}
    except AutooptError:  # whoever loads the file reports its errors
        return names
