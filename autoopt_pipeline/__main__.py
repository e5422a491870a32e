"""The `autoopt` command. If only the serving part is installed, it names the missing package."""

import sys
from importlib.util import find_spec

_PIPELINE_PACKAGES = ("dagster", "typer")


def main() -> None:
    missing = [name for name in _PIPELINE_PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: the autoopt command needs the pipeline, and {missing[0]} is not installed "
            "-> pip install 'autoopt-pipeline[pipeline]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from autoopt_pipeline.cli.main import run

    run()


if __name__ == "__main__":
    main()
