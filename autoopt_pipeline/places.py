"""Whether a path on this machine can be created."""

import os
from pathlib import Path


def creation_problem(path: Path) -> str:
    """The reason why nothing can be created at a free path; "" if it can. Creates nothing itself."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"the folder {nearest} is not writable"
