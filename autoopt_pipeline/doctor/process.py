"""Checks of this process: its variables, modules and packages."""

import difflib
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn
from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.modules.encoder import open_encoder
from autoopt_pipeline.modules.redaction import load_redaction
from autoopt_pipeline.settings import Settings

DISTRIBUTION = "autoopt-pipeline"
_EXTRA = "pipeline"

# Variables of the local stack that are not settings.
_OTHER_VARIABLES = frozenset({"AUTOOPT_PHOENIX_COMMAND", "AUTOOPT_STACK"})


def settings(current: Settings) -> Iterator[Finding]:
    load_redaction(current.redaction)
    yield ok(f"all settings are valid; local data is under {current.home}")
    if current.encoder:
        encoder = open_encoder(current.encoder)
        yield ok(f"sentence encoder {encoder.sha256[:12]} in {current.encoder}, {encoder.dimension} numbers a vector")


def variables(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Warn about `AUTOOPT_` variables that nothing reads: a misspelt one leaves its setting at the default."""
    known = {*_OTHER_VARIABLES, *(f"AUTOOPT_{name.upper()}" for name in Settings.model_fields)}
    unknown = sorted(name for name in environment if name.startswith("AUTOOPT_") and name not in known)
    for name in unknown:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if close:
            yield warn(f"nothing reads {name}", f"did you mean {close[0]}?")
        elif not name.endswith("_API_KEY"):  # a tenant's language model may name those
            yield warn(f"nothing reads {name}", "unset it, or correct its name")
    yield ok(f"{len(known.intersection(environment))} AUTOOPT_ variables are set")


def installed_modules(current: Settings) -> Iterator[Finding]:
    """List the modules that are built in, plugged in, and declared in a file."""
    names = ", ".join(modules())
    yield ok(f"{names}; AUTOOPT_MODULES_FILE is {current.modules_file}" if current.modules_file else names)


def packages(requirements: Iterable[str] | None = None) -> Iterator[Finding]:
    """Compare installed versions with the ranges in this package's metadata."""
    remedy = f"pip install '{DISTRIBUTION}[{_EXTRA}]'"
    try:
        wanted = [
            Requirement(text) for text in (requires(DISTRIBUTION) if requirements is None else requirements) or ()
        ]
        pythons = SpecifierSet(metadata(DISTRIBUTION)["Requires-Python"] or "")
    except PackageNotFoundError:
        yield warn(f"{DISTRIBUTION} is not installed as a package, so its requirements are unknown", remedy)
        return
    if not pythons.contains(platform.python_version(), prereleases=True):
        yield fail(f"Python {platform.python_version()} is not in {pythons}", "use a supported Python")
    fitting = 0
    for requirement in wanted:
        if requirement.marker and not requirement.marker.evaluate({"extra": _EXTRA}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            yield fail(f"{requirement.name} is not installed", remedy)
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            fitting += 1
        else:
            yield fail(f"{requirement.name} {installed} is not in {requirement.specifier}", remedy)
    yield ok(f"Python {platform.python_version()}, and {fitting} packages in the supported ranges")
