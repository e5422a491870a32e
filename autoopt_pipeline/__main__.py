"""The `autoopt` command. If only the serving part is installed, it names the missing package."""

import gc
import sys
from importlib.util import find_spec

_PIPELINE_PACKAGES = ("dagster", "typer")

# Importing Dagster makes a million objects that stay. Python looks through them after every 700 new ones, which took a
# sixth of the time of 'autoopt status acme'.
OBJECTS_BETWEEN_COLLECTIONS = 50_000


def main() -> None:
    missing = [name for name in _PIPELINE_PACKAGES if find_spec(name) is None]
    if missing:
        print(
            f"error: the autoopt command needs the pipeline, and {missing[0]} is not installed "
            "-> pip install 'autoopt-pipeline[pipeline]'",
            file=sys.stderr,
        )
        sys.exit(2)
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    from autoopt_pipeline.cli.main import run

    run()


if __name__ == "__main__":
    main()
