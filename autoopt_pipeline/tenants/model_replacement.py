"""Replaces a language model in a tenant's configuration, wherever it is named."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from autoopt_pipeline.tenants.config import RoutingConfigUnified, chosen_fields, parse_config

ANSWERING = frozenset({"lm", "candidate_lms"})
"""The fields whose models programs ask. A change of another one concerns no program."""


def named_models(config: RoutingConfigUnified) -> dict[str, list[str]]:
    """Return the models that a configuration names, by field. Fields that follow the deployment are left out."""
    listed = {
        "lm": [config.lm],
        "candidate_lms": config.candidate_lms,
        "teacher_lm": [config.teacher_lm],
        "judge.lm": [config.judge.lm if config.judge else None],
    }
    named = {field: [lm.model for lm in lms if lm] for field, lms in listed.items()}
    return {field: names for field, names in named.items() if names}


def fields_naming(config: RoutingConfigUnified, model: str) -> list[str]:
    """Return the fields that name a model."""
    return [field for field, names in named_models(config).items() if model in names]


def with_model_replaced(config: RoutingConfigUnified, old: str, new: str, *, now: datetime) -> RoutingConfigUnified:
    """Return the configuration with another model in all fields that name `old`, which may be none.

    The new model keeps the endpoint, the key's variable and the limits, but not the price. Where programs ask the
    model, all modules are due at once, so that the next run compares under the new one. Raises `InvalidConfig`.
    """
    changed = fields_naming(config, old)
    due = bool(ANSWERING.intersection(changed))
    fields = chosen_fields(config, *(["modules"] if due else []))
    for field in changed:
        *parents, last = field.split(".")
        holder = fields[parents[0]] if parents else fields
        holder[last] = _replaced(holder[last], old, new)
    if "candidate_lms" in fields:
        fields["candidate_lms"] = list(_without_repeats(fields["candidate_lms"], (fields.get("lm") or {}).get("model")))
    for settings in fields["modules"].values() if due else ():
        settings["retrain_after"] = now
    return parse_config(fields, where=f"tenant {config.tenant_id}")


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, list):
        return [_replaced(entry, old, new) for entry in value]
    if value["model"] != old:
        return value
    return {name: kept for name, kept in value.items() if name != "price"} | {"model": new}


def _without_repeats(candidates: list[dict[str, Any]], own: str | None) -> Iterator[dict[str, Any]]:
    """Leave out a candidate that is now the tenant's own model, or listed before."""
    seen = {own}
    for candidate in candidates:
        if candidate["model"] not in seen:
            seen.add(candidate["model"])
            yield candidate
