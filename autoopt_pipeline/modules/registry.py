"""The modules that are installed: built in here, or plugged in by other packages.

A package plugs one in with an entry point of the group `autoopt_pipeline.modules` that leads to a `ModuleSpec`.
"""

import difflib
import re
from functools import cache
from importlib.metadata import entry_points

from autoopt_pipeline.errors import UnknownModule
from autoopt_pipeline.modules.modality import MODALITY
from autoopt_pipeline.modules.routing import ROUTING
from autoopt_pipeline.modules.spec import ModuleSpec

ENTRY_POINT_GROUP = "autoopt_pipeline.modules"
_BUILT_IN = (MODALITY, ROUTING)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""Module names are asset keys, configuration keys and folder names."""


@cache
def modules() -> dict[str, ModuleSpec]:
    """All installed modules by name. Raises `UnknownModule` when a plug-in cannot be loaded or clashes."""
    found = {spec.name: spec for spec in _BUILT_IN}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = entry.load()
        except Exception as e:
            raise UnknownModule(f"module plug-in {entry.value!r} cannot be loaded: {e}", "mend or uninstall it") from e
        if not isinstance(spec, ModuleSpec):
            raise UnknownModule(f"module plug-in {entry.value!r} is no ModuleSpec", "mend or uninstall it")
        if not _NAME.fullmatch(spec.name):
            raise UnknownModule(
                f"module plug-in {entry.value!r}: {spec.name[:60]!r} is no module name",
                "use lower-case letters, digits and '_'",
            )
        if spec.name in found:
            raise UnknownModule(f"module plug-in {entry.value!r}: {spec.name!r} exists already", "rename it")
        found[spec.name] = spec
    return found


def module_names() -> tuple[str, ...]:
    return tuple(modules())


def default_modules() -> tuple[str, ...]:
    """The modules that a tenant's configuration lists unless it says otherwise."""
    return tuple(name for name, spec in modules().items() if spec.scheduled_by_default)


def get_module(name: str) -> ModuleSpec:
    """The module of that name. Raises `UnknownModule` naming the nearest one."""
    spec = modules().get(name)
    if spec is None:
        close = difflib.get_close_matches(name, modules(), n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise UnknownModule(f"unknown module {name[:60]!r}", f"{hint}installed modules: {', '.join(modules())}")
    return spec
