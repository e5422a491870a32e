"""The form for a tenant's main settings. Pure, except that it asks which modules are installed.

A document is what a tenant chose, as JSON knows it. An input is named by the path of its field (`budget.max_lm_calls`,
`agents.0.name`); an empty one follows the default.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.datastructures import FormData

from autoopt_pipeline.durations import as_written
from autoopt_pipeline.errors import InvalidConfig
from autoopt_pipeline.modules.catalog import default_modules, module_names
from autoopt_pipeline.tenants.checking import wrong_models
from autoopt_pipeline.tenants.config import (
    RoutingConfigUnified,
    check_modules,
    field_errors,
    parse_config,
)
from autoopt_pipeline.tenants.diff import may_be_secret

Document = dict[str, Any]

TEXT_FIELDS = (
    "enable_auto_optimization",
    "optimization_interval_seconds",
    "min_samples_for_optimization",
    "mode",
    "lm.model",
    "lm.api_base",
    "lm.api_key_env",
    "budget.max_lm_calls",
    "budget.max_tokens",
    "budget.max_dollars",
    "daily_budget.max_lm_calls",
    "daily_budget.max_tokens",
    "daily_budget.max_dollars",
)
"""The fields that have one input or one choice. Modules and agents come on top; all others are edited as text."""


class AgentRow(NamedTuple):
    """The two inputs of an agent."""

    name: str
    description: str


@dataclass(frozen=True)
class ConfigForm:
    """What the inputs hold: `texts` by field, the modules that are ticked, and the agents."""

    texts: Mapping[str, str]
    modules: frozenset[str]
    agents: Sequence[AgentRow]

    @classmethod
    def of(cls, document: Document) -> "ConfigForm":
        """The form that shows a document."""
        listed = _listed_modules(document)
        return cls(
            {path: _text(path, _value(document, path)) for path in TEXT_FIELDS},
            frozenset(name for name, settings in listed.items() if settings.get("mode") != "off"),
            [_row(agent) for agent in document.get("agents", ())],
        )

    def filled_in(self, posted: FormData) -> "ConfigForm":
        """The form as the browser sends it back. A part that the browser does not send stays as it is."""
        modules, agents = self.modules, self.agents
        if "modules" in posted:
            modules = frozenset(map(str, posted.getlist("modules"))) - {""}
        if "agents.0.name" in posted:
            agents = _posted_agents(posted)
        return ConfigForm({path: _typed(posted.get(path, text)) for path, text in self.texts.items()}, modules, agents)

    def rebased(self, base: "ConfigForm", newest: "ConfigForm") -> "ConfigForm":
        """What was changed in a form made from `base`, as a form made from `newest`. What others changed stays."""
        if base == newest:
            return self
        theirs = [row for row in newest.agents if row in self.agents or row not in base.agents]
        mine = [row for row in self.agents if row not in base.agents and row not in theirs]
        return ConfigForm(
            {path: newest.texts[path] if text == base.texts[path] else text for path, text in self.texts.items()},
            newest.modules ^ (self.modules ^ base.modules),
            [*theirs, *mine],
        )

    def applied_to(self, document: Document) -> Document:
        """The document with what the form changes, not checked yet. A field that the form does not change stays."""
        shown, changed = ConfigForm.of(document), document
        for path, text in self.texts.items():
            if text != shown.texts[path]:
                changed = with_value(changed, path, text)
        if self.agents != shown.agents:
            stored = {_row(agent): agent for agent in document.get("agents", ())}
            changed = with_value(changed, "agents", [stored.get(row) or _agent(row) for row in self.agents])
        if self.modules != shown.modules:
            changed = {**changed, "modules": self._applied_to_modules(_listed_modules(document), shown.modules)}
        return changed

    def _applied_to_modules(self, listed: Document, shown: frozenset[str]) -> Document:
        modules, installed = dict(listed), module_names()
        for name in sorted(self.modules ^ shown):
            settings = listed.get(name, {})
            if name in self.modules:
                modules[name] = {key: value for key, value in settings.items() if key != "mode"}
            elif name in installed:
                modules[name] = {**settings, "mode": "off"}
            else:
                del modules[name]
        return modules

    def without_secrets(self, stored: Mapping[str, str]) -> "ConfigForm":
        """The same with the stored text instead of one that may be a key or a password."""
        texts = {path: stored[path] if may_be_secret(path, text or None) else text for path, text in self.texts.items()}
        return ConfigForm(texts, self.modules, self.agents)


def default_texts() -> Mapping[str, str]:
    """The text of each field's default; nothing where there is none."""
    return ConfigForm.of(RoutingConfigUnified(tenant_id="any").model_dump(mode="json")).texts


def known_modules(document: Document) -> dict[str, bool]:
    """The modules to choose from, and whether each is installed."""
    installed = module_names()
    return {name: name in installed for name in sorted({*installed, *_listed_modules(document)})}


def checked(document: Document, before: Document) -> tuple[RoutingConfigUnified | None, dict[str, str]]:
    """The configuration in a document that follows `before`; or none, and each error by the path of its field.

    The path is empty where an error concerns more than one field.
    """
    if wrong := field_errors(document):
        return None, {".".join(map(str, place)): error for place, error in reversed(wrong.items())}
    config = parse_config(document, where="configuration")
    try:
        check_modules(config, before)
    except InvalidConfig as e:
        return None, {"modules": str(e)}
    if wrong_lms := wrong_models(config, before):
        return None, {path: str(error) for path, error in wrong_lms.items()}
    return config, {}


def with_value(document: Document, path: str, value: Any) -> Document:
    """The document with another value at a dotted path. An empty value is taken out, and so is what it leaves empty."""
    name, _, rest = path.partition(".")
    if rest:
        value = with_value(document.get(name) or {}, rest, value)
    changed = {**document, name: value}
    if value in ("", [], {}):
        del changed[name]
    return changed


def _value(document: Document, path: str) -> Any:
    name, _, rest = path.partition(".")
    return _value(document.get(name) or {}, rest) if rest else document.get(name)


def _text(path: str, value: Any) -> str:
    """A value as its input shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _typed(as_written(path, value))


def _typed(text: object) -> str:
    """A text as it comes back from a browser, whatever ends its lines."""
    return str(text).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd").strip()


def _listed_modules(document: Document) -> Document:
    return document.get("modules", {name: {} for name in default_modules()})


def _row(agent: Document) -> AgentRow:
    return AgentRow(_typed(agent["name"]), _typed(agent.get("description", "")))


def _agent(row: AgentRow) -> Document:
    return {"name": row.name, "description": row.description} if row.description else {"name": row.name}


def _posted_agents(posted: FormData) -> list[AgentRow]:
    """The rows that hold something and are not to be removed."""
    rows, index = [], 0
    while f"agents.{index}.name" in posted:
        row = AgentRow(*(_typed(posted.get(f"agents.{index}.{name}", "")) for name in AgentRow._fields))
        if any(row) and f"agents.{index}.remove" not in posted:
            rows.append(row)
        index += 1
    return rows
