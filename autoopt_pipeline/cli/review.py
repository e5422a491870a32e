"""`autoopt review`: a person says what is right where the candidate and the active version disagree."""

import csv
import json as json_format
import os
import sys
import termios
import tty
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from autoopt_pipeline.cli.completion import complete_module
from autoopt_pipeline.cli.context import console, current_user, instance, open_connections
from autoopt_pipeline.cli.options import Json
from autoopt_pipeline.cli.tables import print_table
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.errors import InvalidReview
from autoopt_pipeline.modules.catalog import get_module, modules
from autoopt_pipeline.registry.records import DrawnTrace, Verdict
from autoopt_pipeline.registry.rollout_records import indexed_rollouts
from autoopt_pipeline.reviews.answers import BOTH_FINE, CANNOT_TELL, agreement, write_review
from autoopt_pipeline.reviews.claims import claim, release
from autoopt_pipeline.reviews.queue import Question, ReviewQueue, open_queues, questions
from autoopt_pipeline.tenants.store import read_config
from autoopt_pipeline.text import duration, one_line

_LABELS_BY_KEY = "abdefghijklmnoprstvwxyz"
"""Keys of labels; the other letters are commands."""
_NAMES = {BOTH_FINE: "all of these are fine", CANNOT_TELL: "cannot tell"}


def review(
    tenant: Annotated[str | None, typer.Argument(help="Tenant [default: all that wait for reviews].")] = None,
    module: Annotated[
        str | None, typer.Argument(help="Module [default: all of the tenant].", autocompletion=complete_module)
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="Show who waits for how many reviews, and end.")] = False,
    second: Annotated[bool, typer.Option("--second", help="Review again what somebody else has reviewed.")] = False,
    by: Annotated[str | None, typer.Option(help="Name of the reviewer [default: your login].")] = None,
    export: Annotated[Path | None, typer.Option("--export", dir_okay=False, help="Write the questions here.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", dir_okay=False, help="Read reviews from here.")] = None,
    json: Json = False,
) -> None:
    """Review disagreements: say what is right where a candidate and the active version, or the two versions of a
    rollout, answer differently.

    Which program gave which answer is not shown. Each review goes to Phoenix at once, so you can stop at any time.
    """
    connections = open_connections()
    reviewer = by or current_user()
    queues = _queues(connections, tenant, module)
    if show or json:
        _print_queues(queues, json=json)
    elif export:
        _export(connections, queues, export)
    elif import_:
        _import(connections, queues, import_, reviewer)
    elif not queues:
        console.print("nothing waits for reviews")
    elif not sys.stdin.isatty():
        raise InvalidReview("there is no terminal to ask at", "use --list, or --export and --import")
    else:
        with _single_keys():
            for queue in queues:
                if not _Session(connections, queue, reviewer, second=second).run():
                    break


def _queues(connections: Connections, tenant: str | None, module: str | None) -> list[ReviewQueue]:
    if tenant is None:
        return open_queues(connections, _awaiting(connections))
    config, _ = read_config(connections.configs, tenant)
    chosen = [get_module(module).name] if module else [name for name in config.modules if name in modules()]
    return open_queues(connections, [(tenant, name) for name in chosen])


def _awaiting(connections: Connections) -> list[tuple[str, str]]:
    """The modules whose last outcome awaits reviews, and those with a rollout."""
    from autoopt_pipeline.run_history.outcomes import read_attempts, read_outcomes

    stored = connections.configs.current()
    begins = {name: entry.since for name, entry in stored.items() if entry.since}
    with instance() as dagster:
        attempts = read_attempts(dagster, modules(), failures_since=datetime.now(UTC), tenants=stored, begins=begins)
        outcomes = read_outcomes(dagster, attempts)
    awaiting = {key for key, outcome in outcomes.items() if outcome.verdict == Verdict.AWAITING_REVIEWS}
    awaiting |= {(entry.tenant_id, entry.module) for entry in indexed_rollouts(connections.files)}
    return sorted(key for key in awaiting if key[0] in stored and key[1] in modules())


def _print_queues(queues: Sequence[ReviewQueue], *, json: bool) -> None:
    if json:
        console.print_json(data=[_as_dict(queue) for queue in queues])
        return
    if not queues:
        console.print("nothing waits for reviews")
        return
    rows = []
    for queue in queues:
        compared = agreement(queue)
        kappa = "" if compared.kappa is None else f"{compared.kappa:.2f}"
        rows.append(
            (
                escape(queue.tenant_id),
                queue.module,
                f"{queue.reviewed} of {len(queue.traces)}",
                duration(queue.time_left),
                queue.version,
                kappa,
            )
        )
    print_table(("tenant", "module", "reviewed", "time left", "candidate", "kappa"), rows)


def _as_dict(queue: ReviewQueue) -> dict[str, Any]:
    compared = agreement(queue)
    return {
        "tenant": queue.tenant_id,
        "module": queue.module,
        "candidate": queue.version,
        "since": queue.since.isoformat(),
        "to_review": len(queue.traces),
        "reviewed": queue.reviewed,
        "seconds_left": queue.time_left.total_seconds(),
        "reviewed_twice": compared.traces,
        "agreed": compared.agreed,
        "kappa": compared.kappa,
    }


def _what_next(queue: ReviewQueue) -> str:
    if queue.candidate:
        return "The next run decides; 'autoopt status' says when."
    return f"'autoopt rollouts {queue.tenant_id} {queue.module}' shows what they say."


@dataclass
class _Session:
    """One person at the keyboard, with the questions of one queue."""

    connections: Connections
    queue: ReviewQueue
    reviewer: str
    second: bool
    done: list[DrawnTrace] = field(default_factory=list)

    def run(self) -> bool:
        """Ask until nothing is left. Return False if the person wants to stop."""
        queue = self.queue
        console.print(
            f"[bold]{escape(queue.tenant_id)}/{queue.module}[/bold]: {queue.reviewed} of {len(queue.traces)} reviewed"
            + (f", about {duration(queue.time_left)} left" if queue.waiting else "")
        )
        waiting = self._others_reviewed() if self.second else queue.waiting
        while waiting:
            trace = waiting.pop(0)
            if not claim(self.connections.files, queue.tenant_id, queue.module, trace.span_id, self.reviewer):
                continue
            try:
                answered = self._ask(trace, left=len(waiting) + 1)
            finally:
                release(self.connections.files, queue.tenant_id, queue.module, trace.span_id)
            if answered is None:
                return False
            if answered:
                self.done.append(trace)
            elif self.done:
                waiting[:0] = [self.done.pop(), trace]
            else:
                waiting.insert(0, trace)
        console.print(f"All are reviewed. {_what_next(queue)}")
        return True

    def _others_reviewed(self) -> list[DrawnTrace]:
        """Traces with one review. Phoenix does not say for all whose it is."""
        return [trace for trace in self.queue.traces if len(self.queue.reviews.get(trace.span_id, ())) == 1]

    def _ask(self, trace: DrawnTrace, *, left: int) -> bool | None:
        """Return whether it was answered, False to go back to the one before, None to stop."""
        for question in questions(self.connections, self.queue, [trace]):
            answers, keys = _choices(question)
            self._show(question, answers, keys, left)
            while True:
                pressed = os.read(sys.stdin.fileno(), 1).decode(errors="replace").lower()
                if pressed in {"q", "\x04", ""}:
                    return None
                if pressed == "u":
                    return False
                answer = keys.get(pressed)
                if answer is None:
                    continue
                note = _read_note() if pressed == "c" else ""
                write_review(self.connections.phoenix, question, answer, reviewer=self.reviewer, note=note)
                console.print(f"  [green]{escape(_NAMES.get(answer, answer))}[/green]\n")
                return True
        return True  # Phoenix no longer has it

    def _show(self, question: Question, answers: Sequence[str], keys: Mapping[str, str], left: int) -> None:
        console.print(f"[dim]{left} left[/dim]")
        for name, text in question.inputs.items():
            console.print(f"  {name}: [bold]{escape(one_line(text, full=True))}[/bold]")
        for place, answer in enumerate(answers, 1):
            console.print(f"  [cyan]{place}[/cyan]  {escape(answer)}")
        descriptions = {label.name: label.description for label in question.labels}
        for key, answer in keys.items():
            if key in _LABELS_BY_KEY:
                described = f"  [dim]{escape(descriptions[answer])}[/dim]" if descriptions.get(answer) else ""
                console.print(f"  [cyan]{key}[/cyan]  {escape(answer)}{described}")
        console.print("  [dim]= all of these are fine   c cannot tell   u undo   q stop[/dim]")


@contextmanager
def _single_keys() -> Generator[None, None, None]:
    """Let the terminal give each key at once, without an echo. Keys that are pressed early are kept."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _read_note() -> str:
    """Ask why nobody can tell. Enter gives no reason."""
    terminal = sys.stdin.fileno()
    single = termios.tcgetattr(terminal)
    whole_lines = termios.tcgetattr(terminal)
    whole_lines[3] |= termios.ICANON | termios.ECHO
    termios.tcsetattr(terminal, termios.TCSADRAIN, whole_lines)
    try:
        console.print("  Why can nobody tell? (Enter: no reason)")
        return sys.stdin.readline().strip()
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, single)


def _choices(question: Question) -> tuple[Sequence[str], dict[str, str]]:
    """The programs' answers, and the answer of each key."""
    keys = {str(place): answer for place, answer in enumerate(question.answers, 1)}
    keys |= dict(zip(_LABELS_BY_KEY, (label.name for label in question.others), strict=False))
    return question.answers, keys | {"=": BOTH_FINE, "c": CANNOT_TELL}


def _export(connections: Connections, queues: Sequence[ReviewQueue], path: Path) -> None:
    """Write all questions that wait, for another tool. `answer` is to be filled in."""
    rows = [
        {
            "tenant": question.tenant_id,
            "module": question.module,
            "span_id": question.trace.span_id,
            "answer": "",
            "choices": list(question.answers),
            **question.inputs,
        }
        for queue in queues
        for question in questions(connections, queue, queue.waiting)
    ]
    if path.suffix.lower() == ".csv":
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({**row, "choices": " | ".join(row["choices"])} for row in rows)
    else:
        path.write_text("".join(json_format.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    console.print(f"{len(rows)} questions are in {escape(str(path))}; fill in 'answer', and give it to --import")


def _import(connections: Connections, queues: Sequence[ReviewQueue], path: Path, reviewer: str) -> None:
    """Store the answers of a file. Everything is checked before anything is written."""
    by_place = {(queue.tenant_id, queue.module): queue for queue in queues}
    asked: list[tuple[Question, str]] = []
    for line, row in _rows(path):
        answer = str(row.get("answer") or "").strip()
        if not answer:
            continue
        place, span_id = (str(row.get("tenant")), str(row.get("module"))), str(row.get("span_id"))
        queue = by_place.get(place)
        traces = [trace for trace in queue.traces if trace.span_id == span_id] if queue else []
        found = list(questions(connections, queue, traces)) if queue else []
        if not found:
            raise InvalidReview(
                f"{path}, line {line}: nobody asks about span {span_id!r} of {'/'.join(place)}",
                "leave tenant, module and span_id as they were exported, or export again",
            )
        if not found[0].accepts(answer):
            raise InvalidReview(
                f"{path}, line {line}: {answer!r} is no answer of {'/'.join(place)}",
                f"give one of {', '.join(label.name for label in found[0].labels)}, {CANNOT_TELL} or {BOTH_FINE}",
            )
        asked.append((found[0], answer))
    for question, answer in asked:
        write_review(connections.phoenix, question, answer, reviewer=reviewer)
    console.print(f"{len(asked)} reviews are stored in Phoenix. The next run decides; 'autoopt status' says when.")


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file with their line numbers. Raises `InvalidReview` for what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise InvalidReview(f"{path} cannot be read: {e}", "name a file that --export has written") from None
    if path.suffix.lower() == ".csv":
        yield from enumerate(csv.DictReader(text.splitlines()), start=2)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json_format.loads(line)
        except ValueError as e:
            raise InvalidReview(f"{path}, line {number}: {e}", "write one JSON object a line") from None
        if not isinstance(row, dict):
            raise InvalidReview(f"{path}, line {number} is no JSON object", "write one JSON object a line")
        yield number, row
