"""Asks a person to confirm a deletion."""

import sys

import typer

from autoopt_pipeline.errors import NotConfirmed

Yes = typer.Option("--yes", help="Do not ask.")


def ask(question: str, *, yes: bool) -> None:
    """Ask at the terminal, unless the person passed --yes. If the answer is no, the command ends.

    Raises `NotConfirmed` without a terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotConfirmed(f"{question}? There is no terminal to ask at", "add --yes")
    typer.confirm(question, abort=True, err=True)
