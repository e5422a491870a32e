"""Places on this machine's disks where something may be made."""

import os
from pathlib import Path


def why_not_makable(path: Path) -> str:
    """Why neither a file nor a folder can be made at a path where nothing is; "" where it can. Makes nothing."""
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        return f"{nearest} is no folder"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"nothing can be made in {nearest}: it may not be written"
