"""Checks of the configuration store and the artifact store: reachable, writable and reliable."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from autoopt_pipeline.clients import Connections
from autoopt_pipeline.doctor.clock import compare_clocks
from autoopt_pipeline.doctor.findings import Finding, fail, ok, warn
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.modules.catalog import missing_module, modules
from autoopt_pipeline.places import creation_problem
from autoopt_pipeline.registry.object_store import CHECK_FOLDER
from autoopt_pipeline.scheduling.conditions import why_off

_SHOWN = 5


def config_store(parts: Connections) -> Iterator[Finding]:
    stored = parts.configs.current()
    parts.configs.check_writable()
    yield ok(f"{len(stored)} tenants; it can be written")
    for risk in parts.configs.risks():
        yield warn(risk.what, risk.remedy)
    wrong: list[AutooptError] = []
    named: dict[str, list[str]] = {}
    for tenant, entry in stored.items():
        try:
            config = entry.parse()
        except AutooptError as e:
            wrong.append(e)
            continue
        for module in config.modules.keys() - modules().keys():
            if not why_off(config, module):
                named.setdefault(module, []).append(tenant)
    for error in wrong[:_SHOWN]:
        yield fail(error.what, error.remedy)
    if len(wrong) > _SHOWN:
        yield fail(f"{len(wrong) - _SHOWN} more configurations are not valid", "'autoopt tenants list' shows them")
    for module in sorted(named, key=lambda name: -len(named[name]))[:_SHOWN]:
        error, tenants = missing_module(module), sorted(named[module])
        more = f" and {len(tenants) - 1} more" if tenants[1:] else ""
        yield fail(f"{error.what}, and {tenants[0]}{more} have it on", error.remedy)
    if len(named) > _SHOWN:
        yield fail(f"{len(named) - _SHOWN} more modules are not installed here", "'autoopt status' shows them")


def artifact_store(parts: Connections) -> Iterator[Finding]:
    """Write, read and delete a file. Also try to create it twice, because promotions rely on exclusive creation."""
    files = parts.files
    if folder := files.folder_to_make:
        why = creation_problem(folder)
        yield (
            fail(why, "check AUTOOPT_ARTIFACTS_URL") if why else ok(f"{folder} is made when something is first stored")
        )
        return
    path = f"{CHECK_FOLDER}/{uuid.uuid4().hex}"
    try:
        created = files.create(path, b"first")
        ours = datetime.now(UTC)
        if not created or files.create(path, b"second") or files.read(path) != b"first":
            yield fail(f"{path} cannot be written and read back", "check AUTOOPT_ARTIFACTS_URL, and the files there")
            return
        yield ok("it can be written and read, and a file is created only once")
        allowed = timedelta(seconds=parts.settings.settling_seconds)
        yield compare_clocks("the artifact store", files.modified(path), ours, allowed)
    finally:
        files.delete(path)
        files.delete_empty(CHECK_FOLDER)
