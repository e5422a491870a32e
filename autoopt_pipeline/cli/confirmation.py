"""Asking a person before something is done that takes away what they may still want."""

import sys

import typer

from autoopt_pipeline.errors import NotConfirmed

Yes = typer.Option("--yes", help="Do not ask.")


def ask(question: str, *, yes: bool) -> None:
    """Ask at the terminal, unless the person has said yes. Where they say no, the command ends.

    Raises `NotConfirmed` where nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotConfirmed(f"{question}? There is no terminal at which to ask", "say --yes")
    typer.confirm(question, abort=True, err=True)
