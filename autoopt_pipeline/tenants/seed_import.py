"""Reads exported configurations: rows of cogniverse's configuration store, or our own export."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoopt_pipeline.errors import AutooptError, InvalidConfig
from autoopt_pipeline.tenants.checking import check_names
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.tenants.lifecycle import check_distinct, spellings
from autoopt_pipeline.tenants.stores.base import StoredConfig

_ROUTING_KEY = "routing_config"


@dataclass(frozen=True)
class ImportedConfig:
    """A configuration, and the fields of its source that it ignores."""

    config: RoutingConfigUnified
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class RefusedRow:
    """The number of an invalid row, and the reason."""

    row: int
    reason: str


def read_rows(
    text: str, stored: Mapping[str, StoredConfig] | None = None, *, where: str = "input"
) -> tuple[list[ImportedConfig], list[RefusedRow]]:
    """Read a JSON array, a single JSON object, or JSON lines.

    A row is a configuration, or a store row with a configuration under `config_value`. The highest version of a tenant
    counts. Rows with other kinds of configuration are skipped.

    An invalid row is refused with its number, and does not stop the others. The same applies to a tenant whose id
    differs only in capital letters from a `stored` one, or from that of an earlier row. Modules and models that a
    stored configuration names need not be installed.
    """
    stored = stored or {}
    spelled = spellings(stored)
    imported: dict[str, tuple[int, ImportedConfig]] = {}
    refused: list[RefusedRow] = []
    for number, row in enumerate(_rows(text, where), 1):
        try:
            if not isinstance(row, dict):
                raise InvalidConfig(f"row {number} is not a JSON object", "give one object per tenant")
            version = row.get("version")
            version = version if isinstance(version, int) else 0
            if row.get("config_key", _ROUTING_KEY) != _ROUTING_KEY:
                continue  # the same export contains telemetry, agents and other kinds
            entry = _import_row(row, number, stored)
            tenant = entry.config.tenant_id
            if tenant not in stored:
                check_distinct(tenant, spelled)
        except AutooptError as e:
            refused.append(RefusedRow(number, str(e)))
            continue
        spelled.setdefault(tenant.lower(), tenant)
        if tenant not in imported or imported[tenant][0] <= version:
            imported[tenant] = (version, entry)
    return [entry for _, entry in imported.values()], refused


def _import_row(row: dict[str, Any], number: int, stored: Mapping[str, StoredConfig]) -> ImportedConfig:
    data = row.get("config_value", row)
    if not isinstance(data, dict):
        raise InvalidConfig(f"row {number}: config_value is not a JSON object", "export the row again")
    known = {name: value for name, value in data.items() if name in RoutingConfigUnified.model_fields}
    if "tenant_id" not in known and "tenant_id" in row:
        known["tenant_id"] = row["tenant_id"]
    config = parse_config(known, where=f"row {number}")
    before = stored.get(config.tenant_id)
    check_names(config, before.document if before else None)
    return ImportedConfig(config, tuple(sorted(set(data) - set(known))))


def _rows(text: str, where: str) -> list[Any]:
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        pass
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as e:
                raise InvalidConfig(
                    f"{where}: line {number} is not JSON: {e}",
                    "give a JSON array, an object, or one object a line",
                ) from None
    return rows
