"""`autoopt init`: the folder of a new deployment."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from autoopt_pipeline.cli.context import console


def init(folder: Annotated[Path, typer.Argument(help="A new folder, or one without files of these names.")]) -> None:
    """Make a folder a DAGSTER_HOME: dagster.yaml, workspace.yaml, and autoopt.env for its settings.

    Overwrites nothing.
    """
    from autoopt_pipeline.devtools.stack import new_home

    made = new_home(folder.absolute())
    console.print(f"{escape(str(folder))} is the folder of a deployment: {', '.join(made)}")
    console.print("correct autoopt.env, and so that commands meet it, in that folder:")
    console.print("  set -a; . ./autoopt.env; set +a\n  autoopt doctor")
