"""Converts a tenant's configuration to YAML for an editor, and back."""

import json
from typing import Any

import yaml

from autoopt_pipeline.durations import durations_written
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.tenants.checking import check_names
from autoopt_pipeline.tenants.config import RoutingConfigUnified, parse_config
from autoopt_pipeline.tenants.stores.base import StoredConfig
from autoopt_pipeline.validation import UniqueKeys


def as_text(entry: StoredConfig) -> str:
    """The stored document as YAML, valid or not, with the defaults of all other fields as comments."""
    stored = durations_written(entry.document)
    defaults = durations_written(RoutingConfigUnified(tenant_id=entry.tenant_id).model_dump(mode="json"))
    if isinstance(stored, dict):
        order = [*(name for name in defaults if name in stored), *(name for name in stored if name not in defaults)]
        stored = {name: stored[name] for name in order}
        defaults = {name: value for name, value in defaults.items() if name not in stored}
    comments = "".join(f"# {name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in defaults.items())
    return (
        f"# Configuration of tenant {entry.tenant_id}, version {entry.version}. A field whose line you delete "
        "follows the default.\n"
        + _yaml(stored)
        + (f"\n# Defaults of the other fields; later releases may change them:\n{comments}" if comments else "")
    )


def _yaml(stored: object) -> str:
    """Readable YAML, with escapes only if PyYAML would not read it back unchanged: it turns U+0085 into a space."""
    text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True, width=120)
    return text if yaml.safe_load(text) == stored else yaml.safe_dump(stored, sort_keys=False, width=120)


def from_text(text: str, newest: StoredConfig) -> RoutingConfigUnified:
    """Parse the text of the version after `newest`. Raises `InvalidConfig`, which names the place of the error."""
    tenant_id = newest.tenant_id
    where = f"tenant {tenant_id}"
    try:
        data: Any = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise InvalidConfig(f"{where}{line}: {e.problem}", "correct the line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: an impossible date or number
        raise InvalidConfig(f"{where}: {e}", "correct the text") from None
    config = parse_config(data, where=where)
    if config.tenant_id != tenant_id:
        raise InvalidConfig(f"{where}: tenant_id cannot be changed", "add a tenant with the new id instead")
    check_names(config, newest.document)
    return config


def reverted_to(entry: StoredConfig, newest: StoredConfig) -> RoutingConfigUnified:
    """Parse an earlier version, to save it again. Raises `InvalidConfig` if it is not valid any more."""
    config = entry.parse()
    check_names(config, newest.document)
    return config


class _Loader(UniqueKeys, yaml.SafeLoader):
    """A safe loader that refuses repeated keys."""
