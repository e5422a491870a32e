"""What does a decision cost in each answer format, and how many answers of a small model can be read?

    make lm
    python bench/formats.py --lm http://127.0.0.1:8081 --queries 20

prints first, for all modules, the tokens of what is sent, as a server in this process has recorded it, and then, for
two modules, what SmolLM2 makes of it. Tokens are counted by SmolLM2's tokenizer; what came out stands in
bench/README.md.
"""

import argparse
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

import dspy
import httpx
from race import CountTokens, tokenizer_of
from writing import table

from autoopt_pipeline.devtools.traffic import SAMPLE_AGENTS, sample_truths
from autoopt_pipeline.evaluation.runner import answer_all, dspy_example, grade, using
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import MeteredLM, metered_lm
from autoopt_pipeline.modules.answer_format import AnswerFormat, in_format
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Example, Label, ModuleSpec, Provenance
from autoopt_pipeline.tenants.config import LMSettings

FORMATS: Sequence[AnswerFormat] = get_args(AnswerFormat)
AGENTS = tuple(Label(name, text) for name, text in SAMPLE_AGENTS.items())
DEMOS = (0, 8)
MAX_TOKENS = 200
INPUTS = {"cross_modal": {"modalities": "video 0.61, text 0.55"}}
"""What a module is told beside the query."""


@contextmanager
def recording() -> Generator[tuple[str, list[dict[str, Any]]]]:
    """A server's address, and the bodies that it was sent. Its answers can be read in no format."""
    bodies: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            message = {"role": "assistant", "content": "recorded"}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            answer = {"id": "x", "object": "chat.completion", "created": 0, "model": "x", "choices": [choice]}
            raw = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()


def model_at(address: str) -> MeteredLM:
    settings = LMSettings(
        model="openai/smollm2",
        api_base=f"{address}/v1",
        max_tokens=MAX_TOKENS,
        concurrency=1,
        timeout_seconds=600,
    )
    return metered_lm(settings, Meter(max_calls=10**6, max_tokens=10**12))


def program_of(spec: ModuleSpec, wanted: AnswerFormat, demos: Sequence[Example] = ()) -> dspy.Module:
    program = in_format(spec.build_program(spec.labels or AGENTS), wanted)
    for predictor in program.predictors():
        predictor.demos = [dspy_example(spec, demo) for demo in demos]
    return program


def sent(spec: ModuleSpec, wanted: AnswerFormat, query: str, count: CountTokens) -> dict[str, Any]:
    """What one decision without demos sends."""
    with recording() as (address, bodies), using(model_at(address)):
        program = program_of(spec, wanted)
        # Each predictor by itself, for what a composed program asks next hangs on the answer.
        for predictor in program.predictors():
            with_query = dict.fromkeys(predictor.signature.input_fields, "") | INPUTS.get(spec.name, {})
            try:
                predictor(**with_query | {"query": query})
            except Exception as e:
                if type(e).__name__ != "AdapterParseError":
                    raise
        texts = [message["content"] for body in bodies for message in body["messages"]]
        schemas = [body["response_format"] for body in bodies if "response_format" in body]
        return {
            "module": spec.name,
            "format": wanted,
            "requests": len(bodies),
            "prompt tokens": sum(map(count, texts)),
            "bytes of schema": sum(len(json.dumps(schema)) for schema in schemas),
        }


def answered(
    spec: ModuleSpec, wanted: AnswerFormat, demos: Sequence[Example], asked: Sequence[Example], address: str
) -> dict[str, Any]:
    """What the model makes of the same queries."""
    lm = model_at(address)
    began = time.perf_counter()
    answers = answer_all(spec, program_of(spec, wanted, demos), asked, lm)
    seconds = time.perf_counter() - began
    unread = Counter(answer.unread.value for answer in answers if answer.unread)
    right = sum(graded.score for graded in grade(spec, asked, answers))
    return {
        "module": spec.name,
        "demos": len(demos),
        "format": wanted,
        "read": f"{len(asked) - unread.total()} of {len(asked)}",
        "not read": ", ".join(f"{number} {why}" for why, number in sorted(unread.items())),
        "right": round(right),
        "prompt tokens": round(lm.meter.input_tokens / lm.meter.calls),
        "of these cached": round(lm.meter.cached_tokens / lm.meter.calls),
        "answer tokens": round(lm.meter.output_tokens / lm.meter.calls),
        "seconds": round(seconds / len(asked), 1),
    }


def examples_of(spec: ModuleSpec, number: int) -> list[Example]:
    """Queries with their right answers, the same every time."""
    rng = random.Random(1)  # noqa: S311
    return [
        Example(
            {"query": truth.query},
            {spec.output_field: truth.answers[spec.output_field]},
            truth.answers[spec.output_field],
            Provenance.HUMAN,
            True,
            datetime(2026, 1, 1, tzinfo=UTC),
            f"{place:016x}",
            f"{place:032x}",
        )
        for place, truth in enumerate(sample_truths(number, rng))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", required=True, help="address of the server that 'make lm' started")
    parser.add_argument("--queries", type=int, default=20, help="for each line of the second table")
    args = parser.parse_args()
    httpx.get(f"{args.lm}/health").raise_for_status()
    count = tokenizer_of(args.lm)
    (first,) = examples_of(get_module("routing"), 1)
    names = ("modality", "routing", "cross_modal", "workflow", "unified")
    print(table([sent(get_module(name), wanted, first.query, count) for name in names for wanted in FORMATS]), "\n")
    rows = []
    for name in ("modality", "routing"):
        spec = get_module(name)
        shown = examples_of(spec, args.queries + max(DEMOS))
        ask = partial(answered, spec, asked=shown[max(DEMOS) :], address=args.lm)
        rows += [ask(wanted=wanted, demos=shown[:demos]) for demos in DEMOS for wanted in FORMATS]
        print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
