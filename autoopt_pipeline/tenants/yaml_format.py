"""A tenant's configuration as text for an editor, and back."""

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
    """YAML with what is stored, be it valid or not, and as comments the fields that follow the defaults."""
    stored = durations_written(entry.document)
    defaults = durations_written(RoutingConfigUnified(tenant_id=entry.tenant_id).model_dump(mode="json"))
    if isinstance(stored, dict):
        order = [*(name for name in defaults if name in stored), *(name for name in stored if name not in defaults)]
        stored = {name: stored[name] for name in order}
        defaults = {name: value for name, value in defaults.items() if name not in stored}
    comments = "".join(f"# {name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in defaults.items())
    return (
        f"# Configuration of tenant {entry.tenant_id}, version {entry.version}. A line that you take out follows "
        "the default.\n"
        + _yaml(stored)
        + (f"\n# Not chosen, so the defaults hold, also those of later releases:\n{comments}" if comments else "")
    )


def _yaml(stored: object) -> str:
    """Readable, and with escapes only where that would not be read back as it is: PyYAML folds U+0085 into a blank."""
    text = yaml.safe_dump(stored, sort_keys=False, allow_unicode=True, width=120)
    return text if yaml.safe_load(text) == stored else yaml.safe_dump(stored, sort_keys=False, width=120)


def from_text(text: str, newest: StoredConfig) -> RoutingConfigUnified:
    """The configuration in a text that is to follow the newest one. Raises `InvalidConfig` with one line that names
    the place."""
    tenant_id = newest.tenant_id
    where = f"tenant {tenant_id}"
    try:
        data: Any = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise InvalidConfig(f"{where}{line}: {e.problem}", "correct the line") from None
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: a date or a number that cannot be
        raise InvalidConfig(f"{where}: {e}", "correct the text") from None
    config = parse_config(data, where=where)
    if config.tenant_id != tenant_id:
        raise InvalidConfig(f"{where}: tenant_id cannot be changed", "add a tenant with the new id instead")
    check_names(config, newest.document)
    return config


def reverted_to(entry: StoredConfig, newest: StoredConfig) -> RoutingConfigUnified:
    """An earlier version, to be saved again. Raises `InvalidConfig` where it is not valid any more."""
    config = entry.parse()
    check_names(config, newest.document)
    return config


class _Loader(UniqueKeys, yaml.SafeLoader):
    """Values as YAML reads them."""
