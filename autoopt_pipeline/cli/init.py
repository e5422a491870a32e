"""`autoopt init`: creates the folder of a new deployment."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console


def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one without files of these names.")]) -> None:
    """Make a folder a DAGSTER_HOME: dagster.yaml, workspace.yaml, and autoopt.env for its settings.

    Does not overwrite files.
    """
    from autoopt_pipeline.devtools.stack import new_home

    created = new_home(folder.absolute())
    console.print(f"{escape(str(folder))} is now the home of a deployment: {', '.join(created)}")
    console.print("next, edit autoopt.env, load it in that folder, and check the result:")
    console.print("  set -a; . ./autoopt.env; set +a\n  autoopt doctor")
