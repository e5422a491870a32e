"""What does serving cost an application, beside calling DSPy itself?

    python bench/serving.py --tenants 1000

prints the cost of importing, loading, deciding, following promotions and sending spans, and the memory per tenant. The
model answers at once, artifacts are in a local folder, and what is compared runs side by side in one process. All
times are CPU time, but for those that say otherwise; see bench/README.md.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Label
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.records import Manifest
from autoopt_pipeline.registry.serialization import serialize
from autoopt_pipeline.registry.version_store import VersionStore
from autoopt_pipeline.serving import Serving, trace_to_phoenix
from autoopt_pipeline.span_contract import project_name

ROUTING = get_module("routing")
AGENTS = tuple(Label(f"agent_{number}", f"takes requests of kind {number}") for number in range(8))
AT = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS, CALLS = 12, 40
SENT = 2000
TENANTS_SENT = 100


class Instant:
    """Answers every request at once, and always the same."""

    def complete(self, request: Request) -> Response:
        text = "[[ ## reasoning ## ]]\nbecause\n\n[[ ## agent ## ]]\nagent_1\n\n[[ ## confidence ## ]]\n0.9"
        return Response(
            id="1",
            model="instant",
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=Usage(input_tokens=1, output_tokens=1, total_tokens=2),
        )


def promote(root: str, tenant: str, demos: int, number: int = 0) -> None:
    """Store a program with that many demos, and make it active."""
    made = ROUTING.build_program(AGENTS)
    for _, predictor in made.named_predictors():
        predictor.demos = [
            dspy.Example(
                query=f"please find item {tenant} {number} {each} of the yearly report on shipping and its costs",
                modality="text",
                entities="",
                relationships="",
                reasoning="the request asks for a document that is known to exist",
                agent=f"agent_{each % len(AGENTS)}",
                confidence=0.9,
            )
            for each in range(demos)
        ]
    stored = serialize(ROUTING, tenant, AGENTS, made)
    version = f"20260101T0000{number:02d}Z-{stored.digest[:8]}"
    artifacts = VersionStore(ObjectStore(root), tenant, "routing")
    manifest = Manifest(
        version=version,
        program_sha256=stored.digest,
        created_at=AT,
        run_id="bench",
        parent=None,
        verdict="promoted",
        reason="",
        window_start=AT,
        window_end=AT,
        examples={},
        provenance={},
        incumbent_score=None,
        candidate_score=None,
        gate={},
        optimizer="bench",
        seed=9,
        lm="instant",
        stand_in=True,
        lm_calls=0,
        lm_tokens=0,
        packages={},
    )
    artifacts.save(stored, manifest)
    active = artifacts.active()
    artifacts.transition(version, expected=active.version if active else None, actor="bench", reason="")


def imports() -> None:
    print("\n| import, in a fresh process | seconds | MB | modules |\n|---|--:|--:|--:|")
    for code in ("pass", "import autoopt_pipeline.serving", "import dspy", "import dspy, autoopt_pipeline.serving"):
        measured = []
        for _ in range(5):
            program = (
                f"import sys, time, pathlib; began = time.process_time(); {code}; spent = time.process_time() - began; "
                "pages = pathlib.Path('/proc/self/statm').read_text().split()[1]; print(spent, pages, len(sys.modules))"
            )
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
            measured.append([float(value) for value in done.stdout.split()])
        seconds, pages, modules = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"| `{code}` | {seconds:.2f} | {int(pages) * 4096 / 2**20:.0f} | {modules:.0f} |")


def loading(lm: dspy.LM) -> None:
    print("\n| first request of a tenant | ms | of these, the files | of these, DSPy's program |\n|---|--:|--:|--:|")
    for demos in (0, 16, 50):
        with tempfile.TemporaryDirectory() as root:
            tenants = [f"t{number}" for number in range(50)]
            for tenant in tenants:
                promote(root, tenant, demos)
            serving = Serving(root, lm=lm, refresh_seconds=3600)
            serving.program("warm", "routing", agents=AGENTS)
            whole = [spent(lambda s=serving, t=tenant: s.program(t, "routing", agents=AGENTS)) for tenant in tenants]
            files = ObjectStore(root)
            stores = [VersionStore(files, tenant, "routing") for tenant in tenants]
            versions = [store.versions()[0].version for store in stores]
            read = [spent(lambda s=s, v=v: s.load(v)) for s, v in zip(stores, versions, strict=True)]
            rest = statistics.median(whole) - statistics.median(read)
            print(f"| {demos} demos | {statistics.median(whole):.1f} | {statistics.median(read):.1f} | {rest:.1f} |")
            serving.close()


def deciding(lm: dspy.LM) -> None:
    print("\n| one decision, microseconds | 0 demos | 16 demos | 50 demos |\n|---|--:|--:|--:|")
    rows: dict[str, list[str]] = {}
    for demos in (0, 16, 50):
        with tempfile.TemporaryDirectory() as root, sink() as (address, _):
            promote(root, "acme", demos)
            provider = TracerProvider()
            trace_to_phoenix(address, tracer_provider=provider)
            plain = Serving(root, lm=lm, refresh_seconds=3600)
            traced = Serving(root, lm=lm, refresh_seconds=3600, tracer_provider=provider)
            loaded = plain.program("acme", "routing", agents=AGENTS)

            def dspy_with(adapter: dspy.Adapter, program: dspy.Module = loaded.program) -> Callable[[], object]:
                def call() -> object:
                    with dspy.context(lm=lm, adapter=adapter, disable_history=True, trace=None):
                        return program(query="where is the report?")

                return call

            ways: dict[str, Callable[[], object]] = {
                "DSPy, its own adapter": dspy_with(dspy.ChatAdapter()),
                "DSPy, formatted demos kept": dspy_with(loaded.adapter),
                "`decide`, no tracing": lambda s=plain: s.decide(
                    "acme", "routing", agents=AGENTS, query="where is it?"
                ),
                "`decide`, spans sent to a server": lambda s=traced: s.decide(
                    "acme", "routing", agents=AGENTS, query="where is it?"
                ),
            }
            for name, microseconds in side_by_side(ways).items():
                rows.setdefault(name, []).append(f"{microseconds:.0f}")
            plain.close()
            traced.close()
            provider.shutdown()
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def following(lm: dspy.LM, tenants: int) -> None:
    print(f"\n| {tenants} tenants, 16 demos each | files read | CPU s | wall s |\n|---|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as root:
        names = [f"t{number}" for number in range(tenants)]
        for name in names:
            promote(root, name, 16)
        serving = Serving(root, lm=lm, refresh_seconds=3600, max_loaded=tenants)
        before = resident_mb()
        row("first loads", lambda: [serving.program(name, "routing", agents=AGENTS) for name in names])
        loaded = resident_mb()
        for name in names:
            serving.decide(name, "routing", agents=AGENTS, query="where is the report?")
        used = resident_mb()
        row("a refresh, nothing promoted", serving.refresh)
        for name in names[:10]:
            promote(root, name, 16, number=1)
        row("a refresh, 10 promotions", serving.refresh)
        latencies = while_refreshing(serving, root, names[:100])
        print(
            f"\n| memory per tenant, 16 demos | KB |\n|---|--:|\n| loaded | {(loaded - before) * 1024 / tenants:.0f} |"
        )
        print(f"| and asked once, its demos formatted | {(used - before) * 1024 / tenants:.0f} |")
        print("\n| a decision while 100 promotions are loaded | ms |\n|---|--:|")
        print(f"| median | {statistics.median(latencies):.1f} |")
        print(f"| slowest of {len(latencies)} | {max(latencies):.1f} |")
        serving.close()


def while_refreshing(serving: Serving, root: str, names: Sequence[str]) -> list[float]:
    """Wall milliseconds of decisions for a tenant while others' promotions are put into service."""
    for name in names:
        promote(root, name, 16, number=2)
    refreshing = threading.Thread(target=serving.refresh)
    refreshing.start()
    found = []
    while refreshing.is_alive():
        began = time.perf_counter()
        serving.decide("t900", "routing", agents=AGENTS, query="where is the report?")
        found.append((time.perf_counter() - began) * 1000)
    refreshing.join()
    return found


def sending() -> None:
    print(f"\n| {SENT} spans of {TENANTS_SENT} tenants | requests | threads | CPU ms |\n|---|--:|--:|--:|")
    tenants = [f"t{number}" for number in range(TENANTS_SENT)]
    for name, make in (("one exporter, a resource per tenant", _one), ("a provider per tenant", _one_per_tenant)):
        with sink() as (address, requests):
            gc.collect()
            threads = threading.active_count()
            began = time.process_time()
            providers = make(address, tenants)
            for number in range(SENT):
                tenant = tenants[number % TENANTS_SENT]
                provider = providers.get(tenant) or providers[""]
                attributes = {"autoopt.tenant_id": tenant, "routing.query": "where is the report?"}
                provider.get_tracer("bench").start_span("cogniverse.routing", attributes=attributes).end()
            threads = threading.active_count() - threads
            for provider in providers.values():
                provider.force_flush()
            cpu = (time.process_time() - began) * 1000
            for provider in providers.values():
                provider.shutdown()
            print(f"| {name} | {len(requests)} | {threads} | {cpu:.0f} |")


def _one(address: str, tenants: Sequence[str]) -> dict[str, TracerProvider]:
    provider = TracerProvider()
    trace_to_phoenix(address, tracer_provider=provider)
    return {"": provider}


def _one_per_tenant(address: str, tenants: Sequence[str]) -> dict[str, TracerProvider]:
    providers = {}
    for tenant in tenants:
        provider = TracerProvider(resource=Resource.create({"openinference.project.name": project_name(tenant)}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces")))
        providers[tenant] = provider
    return providers


@contextmanager
def sink() -> Generator[tuple[str, list[int]]]:
    """A server that takes everything; the sizes of the requests it took."""
    sizes: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sizes.append(len(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", sizes
    server.shutdown()


def side_by_side(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median CPU microseconds of a call, in rounds that take turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, call in ways.items():
            began = time.process_time()
            for _ in range(CALLS):
                call()
            if number:  # the first round warms up
                found[name].append((time.process_time() - began) / CALLS * 1e6)
    return {name: statistics.median(values) for name, values in found.items()}


def row(name: str, do: Callable[[], object]) -> None:
    """Print what doing it costs, with the files that were read."""
    reads = 0

    def counted(original: Callable[..., object]) -> Callable[..., object]:
        def read(*args: object) -> object:
            nonlocal reads
            reads += 1
            return original(*args)

        return read

    one_of_many, alone = counted(ObjectStore._read_or_error), counted(ObjectStore.read)
    with mock.patch.multiple(ObjectStore, _read_or_error=one_of_many, read=alone):
        cpu, wall = time.process_time(), time.perf_counter()
        do()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"| {name} | {reads} | {cpu:.3f} | {wall:.3f} |")


def spent(do: Callable[[], object]) -> float:
    """Wall milliseconds."""
    began = time.perf_counter()
    do()
    return (time.perf_counter() - began) * 1000


def resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", type=int, default=1000)
    tenants = parser.parse_args().tenants
    lm = dspy.LM("instant/instant", engine=Instant(), cache=False)
    imports()
    loading(lm)
    deciding(lm)
    following(lm, tenants)
    sending()


if __name__ == "__main__":
    main()
