"""A text in the editor of the person at the terminal."""

import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from autoopt_pipeline.cli.context import console
from autoopt_pipeline.errors import AutooptError, InvalidSettings


class EditedFile:
    """A private file that holds a text while it is edited."""

    def __init__(self, text: str, *, suffix: str) -> None:
        handle, name = tempfile.mkstemp(prefix="autoopt-", suffix=suffix)  # for this user only
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        self.path = Path(name)
        self._original = text

    @property
    def text(self) -> str:
        """What stands in the file. Raises `InvalidSettings` where the editor left no text."""
        try:
            return self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise InvalidSettings(f"{self.path}: {e}", "let the editor save UTF-8 text under the same name") from None

    @property
    def changed(self) -> bool:
        return self.text != self._original

    def edit(self) -> None:
        """Let the person edit it. Raises `InvalidSettings` when the editor cannot be started, or fails."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        remedy = "set VISUAL or EDITOR to an editor that waits until the file is closed"
        try:
            with _interrupts_left_to_the_editor():
                done = subprocess.run([*shlex.split(editor), str(self.path)], check=False)  # noqa: S603 - the user's own
        except (OSError, ValueError) as e:
            raise InvalidSettings(f"the editor {editor!r} cannot be started: {e}", remedy) from None
        if done.returncode:
            raise InvalidSettings(f"the editor {editor!r} ended with status {done.returncode}", remedy)


@contextmanager
def edited_file(text: str, *, suffix: str) -> Generator[EditedFile, None, None]:
    """A file to edit that is gone afterwards, unless something goes wrong: then what was written is kept."""
    file = EditedFile(text, suffix=suffix)
    try:
        yield file
    except AutooptError as e:
        if file.path.exists() and file.changed:
            raise type(e)(e.what, f"{e.remedy}; your text is kept in {file.path}") from None
        file.path.unlink(missing_ok=True)
        raise
    except BaseException:
        console.print(f"your text is kept in {file.path}")
        raise
    file.path.unlink(missing_ok=True)


@contextmanager
def _interrupts_left_to_the_editor() -> Generator[None, None, None]:
    """Ctrl-C is the editor's, as it is for git. A handler, because a process inherits signals that are ignored."""

    def leave(number: int, frame: FrameType | None) -> None:
        return

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
