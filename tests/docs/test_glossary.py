"""Documents, help texts and dashboard pages use the words of docs/glossary.md and none of the retired ones."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from autoopt_pipeline.cli.main import app
from tests.support.project import PROJECT

GLOSSARY = PROJECT / "docs" / "glossary.md"
DOCUMENTS = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
DOCUMENTS += sorted((PROJECT / "docs").glob("*.md"))
TEMPLATES = sorted((PROJECT / "autoopt_pipeline" / "dashboard" / "templates").glob("*.html"))

# What is retired, as a pattern, and what to write instead. Ordinary English words count only where they are marked as
# code, or with the words around them that give them the retired meaning. Redis' own `+watch` is none.
RETIRED = {
    r"(?<!\+)\bwatch(?:es|ed|ing)?\b": "rollout, monitor",
    r"\b(?:a|each|every|first|last|next|one|this) look\b": "tick, holdout test, analysis, refresh",
    r"\blook(?:s|ed)? at the holdout\b": "is tested on the holdout",
    r"\b(?:a|every|last|next|the) moves?\b": "transition",
    r"\b(?:its|open|the) trials?\b": "sequential test",
    r"\bwaiting candidates?\b": "inconclusive candidate",
    r"\bwaits for you\b": "needs approval",
    r"[`'\"]waiting[`'\"]": "inconclusive",
    r"[`'\"]left[`'\"]": "deferred",
    r"`(?:well|healthy)`": "up to date",
    r"(?:`data`|\*\*data\*\*)": "training_data",
    r"`trouble`": "error",
    r"`moved`": "last_transition",
    r"`last`": "last_run",
    r"`moves`": "transitions",
    r"`trial`": "sequential_test",
    r"\b(?:moves|trials)/": "transitions/, sequential_tests/",
    r"--why\b": "--reason",
    r"--even-if-configured\b": "--force",
    r"\bautoopt traffic\b": "autoopt simulate",
    r"\b(?:holdback|canary)_share\b": "holdback_fraction, canary_fraction",
    r"\bforgotten_traces\b": "excluded_traces",
    r"\b(?:share_instructions|start_from_shared|shared instructions)\b": "nothing: tenants share nothing",
    r"\b(?:score|brier)_(?:before|after)\b": "incumbent_score, candidate_score, incumbent_brier, candidate_brier",
    r"\blm_calls_of_teacher\b": "teacher_lm_calls",
    r"\b(?:unusable_decisions|decisions_read)\b": "skipped_spans, spans_read",
    r"\bwaits_for_approval\b": "needs_approval",
    r"\bautoopt_failures_in_a_row\b": "autoopt_consecutive_failures",
    r"\bautoopt_watches(?:_left)?\b": "autoopt_rollouts_active, autoopt_rollouts_deferred",
    r"\bautoopt_phoenix_reachable\b": "autoopt_phoenix_up",
    r"\b(?:AutooptDoesNotLook|AutooptSpends)\b": "AutooptSensorStalled, AutooptTokenSpendHigh",
    r"\bpromotion_watch_sensor\b": "rollout_monitor_sensor",
    r"\bAUTOOPT_KEEP_RUNS_DAYS\b": "AUTOOPT_RUN_RETENTION_DAYS",
    r"\bAUTOOPT_MODULES\b": "AUTOOPT_MODULES_FILE",
    r"\bAUTOOPT_JITTER\b": "AUTOOPT_SCHEDULE_JITTER",
    r"\b(?:faults|configure|serve|troubleshoot)\.md\b": "failure-modes.md, configuration.md, serving.md, ...",
}

_NOT_TEXT = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}|<[^>]*>", re.DOTALL)


def retired_in(text: str) -> list[str]:
    return [
        f"{match[0]!r} in {line.strip()!r}: write {instead}"
        for line in text.splitlines()
        for pattern, instead in RETIRED.items()
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]


def help_texts(command: object, name: str = "autoopt") -> Iterator[tuple[str, str]]:
    """What `--help` shows, by command."""
    assert isinstance(command, TyperCommand | TyperGroup)
    lines = [name, command.help or ""]
    for parameter in command.params:
        lines.append(" ".join([*parameter.opts, *parameter.secondary_opts, getattr(parameter, "help", "") or ""]))
    yield name, "\n".join(lines)
    if isinstance(command, TyperGroup):
        for below, inner in command.commands.items():
            yield from help_texts(inner, f"{name} {below}")


HELP_TEXTS = dict(help_texts(typer.main.get_command(app)))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_uses_no_retired_word(path: Path) -> None:
    text = path.read_text()
    assert not retired_in(text.partition("\n## Retired words\n")[0] if path == GLOSSARY else text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_a_page_of_the_dashboard_uses_no_retired_word(path: Path) -> None:
    assert not retired_in(_NOT_TEXT.sub(" ", path.read_text()))


def test_every_command_has_a_help_text_to_check() -> None:
    assert "autoopt config set" in HELP_TEXTS
    assert "--canary" in HELP_TEXTS["autoopt promote"]


@pytest.mark.parametrize("command", HELP_TEXTS)
def test_a_help_text_uses_no_retired_word(command: str) -> None:
    assert not retired_in(HELP_TEXTS[command])


def test_every_word_that_the_glossary_calls_retired_is_looked_for() -> None:
    table = GLOSSARY.read_text().partition("\n## Retired words\n")[2]
    words = re.findall(r"^\| ([^|-]+) \| [^|]+ \|$", table, re.MULTILINE)[1:]
    assert words
    for word in words:
        assert retired_in(word), word
