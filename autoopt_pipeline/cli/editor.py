"""Opens a text in the person's editor, and never loses their changes."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.errors import AutooptError, InvalidSettings


@contextmanager
def edited_file(text: str) -> Generator[Path, None, None]:
    """A temporary YAML file with the text. If the block raises, the file stays, provided that the person changed it."""
    handle, name = tempfile.mkstemp(prefix="autoopt-", suffix=".yaml")  # only this user can read the file
    path = Path(name)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        yield path
    except BaseException as e:
        if not path.exists() or path.read_bytes() == text.encode():
            path.unlink(missing_ok=True)
        elif isinstance(e, AutooptError):
            raise type(e)(e.what, f"{e.remedy}; your text is kept in {path}") from None
        else:
            console.print(f"your text is kept in {path}")
        raise
    path.unlink(missing_ok=True)


def open_in_editor(path: Path) -> str:
    """Open the file in $VISUAL or $EDITOR and return its text. Raises `InvalidSettings` if the editor fails."""
    try:
        click.edit(filename=str(path))
        return path.read_text(encoding="utf-8")
    except (click.ClickException, OSError, ValueError) as e:
        raise InvalidSettings(
            f"the text was not edited: {e}",
            "set VISUAL or EDITOR to an editor that waits until the file is closed and saves UTF-8 text",
        ) from None
