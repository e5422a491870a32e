"""`autoopt`, the command for people."""

import signal
import sys
import traceback
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from autoopt_pipeline.cli import alerts, artifacts, config, models, tenants, traces
from autoopt_pipeline.cli.backtest import backtest
from autoopt_pipeline.cli.contents import diff, show
from autoopt_pipeline.cli.context import console
from autoopt_pipeline.cli.dashboard import dashboard
from autoopt_pipeline.cli.doctor import doctor
from autoopt_pipeline.cli.forget import forget
from autoopt_pipeline.cli.init import init
from autoopt_pipeline.cli.metrics import metrics
from autoopt_pipeline.cli.promotions import decline, promote, rollback
from autoopt_pipeline.cli.review import review
from autoopt_pipeline.cli.rollouts import rollouts
from autoopt_pipeline.cli.simulate import simulate
from autoopt_pipeline.cli.status import status
from autoopt_pipeline.cli.trigger import trigger
from autoopt_pipeline.cli.versions import history, versions
from autoopt_pipeline.cli.why import why
from autoopt_pipeline.errors import AutooptError
from autoopt_pipeline.secrets import guard_process, scrub
from autoopt_pipeline.text import printable

app = typer.Typer(
    name="autoopt",
    help="Keeps the routing modules of every tenant improving from Phoenix traces.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(tenants.app, name="tenants")
app.add_typer(config.app, name="config")
app.add_typer(models.app, name="models")
app.add_typer(traces.app, name="traces")
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(alerts.app, name="alerts")
for command in (
    init,
    trigger,
    status,
    why,
    backtest,
    review,
    versions,
    history,
    show,
    diff,
    promote,
    rollback,
    decline,
    rollouts,
    forget,
    simulate,
    doctor,
    metrics,
    dashboard,
):
    app.command()(command)

ERROR_STATUS = 2


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name in ("autoopt-pipeline", "dagster", "dspy", "arize-phoenix-client"):
            print(name, version(name))
        raise typer.Exit


@app.callback()
def autoopt(
    versions: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_versions, help="Print the versions and exit."),
    ] = False,
) -> None:
    pass


class LocalModel(StrEnum):
    """Real language models that can run on this machine."""

    SMOLLM2 = "smollm2"


_LM = typer.Option(help="Add a tenant with this real language model ('make lm' installs it).")


@app.command()
def demo(
    home: Annotated[Path | None, typer.Option(help="A new folder to work in [default: .autoopt/demo here].")] = None,
    lm: Annotated[LocalModel | None, _LM] = None,
    queries: Annotated[
        Path | None, typer.Option(help="JSON lines with 'query' and 'agent', for one more tenant to play.")
    ] = None,
) -> None:
    """Run the whole loop here: Phoenix, the Dagster daemon, six sample tenants, three rounds."""
    from autoopt_pipeline.devtools.demo import run_demo

    run_demo(console, home, smollm2=lm is LocalModel.SMOLLM2, queries=queries)


@app.command()
def up(
    phoenix_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Phoenix UI.")] = 6006,
    dagster_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Dagster UI.")] = 3000,
    dashboard_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the dashboard.")] = 8080,
    lm: Annotated[LocalModel | None, _LM] = None,
    lm_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the real language model.")] = 8081,
) -> None:
    """Run Phoenix, Dagster and the dashboard on this folder's instance, with sample tenants, until Ctrl-C."""
    from autoopt_pipeline.devtools.up import run_up

    run_up(
        console,
        Path.cwd(),
        phoenix_port=phoenix_port,
        dagster_port=dagster_port,
        dashboard_port=dashboard_port,
        smollm2_port=lm_port if lm is LocalModel.SMOLLM2 else None,
    )


_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run() -> None:
    """The entry point. It prints an `AutooptError` as one line and ends with exit status 2."""
    guard_process()
    # SIGINT too, because a shell that is not interactive starts background commands with SIGINT ignored.
    for number in _ENDING_SIGNALS:
        signal.signal(number, _interrupt)
    try:
        app()
    except AutooptError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(ERROR_STATUS)
    except Exception:  # noqa: BLE001 - Python's own status would be 1, which means "skipped"
        print(printable(scrub(traceback.format_exc())), end="", file=sys.stderr)
        sys.exit(ERROR_STATUS)
    except KeyboardInterrupt:
        sys.exit(130)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Interrupt the command once. Further signals must not interrupt the cleanup."""
    for ending_signal in _ENDING_SIGNALS:
        signal.signal(ending_signal, signal.SIG_IGN)
    raise KeyboardInterrupt
