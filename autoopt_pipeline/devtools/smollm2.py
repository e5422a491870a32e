"""A small real language model on this machine: SmolLM2 with 135 million parameters, served by llama.cpp.

It shows what a stand-in cannot: real tokens, nonsense, truncated answers, prompts that are too long, slowness. Its
choices among several labels are near chance, so its scores do not carry over to other models.
"""

from pathlib import Path

from autoopt_pipeline.devtools import smollm2_server
from autoopt_pipeline.devtools.processes import LOOPBACK, Processes
from autoopt_pipeline.devtools.sample_tenants import REAL_MODEL_TENANT
from autoopt_pipeline.errors import StackFailed
from autoopt_pipeline.tenants.config import LMSettings

NAME = smollm2_server.NAME
# Virtual environment of a checkout.
ENVIRONMENT = Path(__file__).resolve().parents[2] / ".venv-lm"

_START_SECONDS = 60


def is_installed() -> bool:
    """Return whether 'make lm' has installed both the model and its server."""
    return (ENVIRONMENT / ".installed").exists()


def start_smollm2(processes: Processes, folder: Path, port: int, *, context: int = smollm2_server.CONTEXT) -> str:
    """Start the server and return its address once it answers. `context` limits prompt and answer together, in tokens.

    Raises `StackFailed` if it is not installed, has another model, or does not answer.
    """
    if not is_installed():
        raise StackFailed(
            f"the language model {NAME} is not installed: there is no {ENVIRONMENT}",
            "in a checkout, run 'make lm' (it gets an environment of its own, .venv-lm)",
        )
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{NAME}-{port}"
    command = [str(ENVIRONMENT / "bin" / "python"), smollm2_server.__file__]
    processes.start(name, [*command, "--port", str(port), "--context", str(context)], env={}, cwd=folder)
    address = f"http://{LOOPBACK}:{port}"
    processes.wait_for_http(name, f"{address}/health", seconds=_START_SECONDS)
    return address


def smollm2_settings(address: str) -> LMSettings:
    """Return the language model settings for a tenant's configuration."""
    return LMSettings.model_validate({"api_base": f"{address}/v1", **smollm2_server.SETTINGS})


def who_answers(lm: LMSettings | None) -> str:
    """Describe who answers, for the demo and `autoopt up`. `lm` is the real model, if there is one."""
    if lm is None:
        return (
            "Answers come from the offline [bold]stand-in[/bold], which is no language model: the loop is real, "
            "the scores say nothing of one."
        )
    return (
        f"[bold]{REAL_MODEL_TENANT.tenant_id}/{', '.join(REAL_MODEL_TENANT.modules)}[/bold] is answered by "
        f"[bold]{NAME}[/bold], a real language model of 135 million parameters: near chance at this, so its score says "
        "nothing of quality. It shows real tokens and real waiting. All else is answered by the offline "
        "[bold]stand-in[/bold], which is no language model."
    )
