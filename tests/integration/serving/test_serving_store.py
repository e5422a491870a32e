"""What readers see of writers: whole versions and pointers only, on the local folder and on S3."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidArtifact, PromotionConflict
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import Pointer, VersionStore, read_pointers
from autoopt_pipeline.serving import Serving
from tests.support.project import PROJECT
from tests.support.s3 import s3_bucket
from tests.support.stored_programs import made_program, store

KILLS = 40
BYTES = 400_000
"""Of a program, so that a write takes long enough to be killed in."""

WRITER = f"""
import os, random, signal, sys, time
sys.path.insert(0, {str(PROJECT)!r})
from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import VersionStore
from tests.support.stored_programs import made_program, store
made = made_program("acme", demos=["x" * {BYTES}])
transitions = os.path.join(sys.argv[1], "acme", "routing", "transitions")
random.seed(1)
for kill in range(int(sys.argv[2])):
    made_until = len(os.listdir(transitions)) if os.path.isdir(transitions) else 0
    child = os.fork()
    if child == 0:
        artifacts = VersionStore(ObjectStore(sys.argv[1]), "acme", "routing")
        number = kill * 10_000
        while True:
            number += 1
            store(artifacts, made, number, active=True)
    while kill % 8 == 0 and not (os.path.isdir(transitions) and len(os.listdir(transitions)) > made_until):
        time.sleep(0.002)  # some versions are made on a slow machine, too
    time.sleep(random.uniform(0.005, 0.12))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    print(-os.WTERMSIG(status))
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_bucket() as address:
        yield address


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


def test_a_reader_sees_whole_versions_only_whenever_the_writer_is_killed(tmp_path: Path) -> None:
    """The writer is killed at a moment of its own each time, and readers look all the while."""
    artifacts = VersionStore(ObjectStore(str(tmp_path)), "acme", "routing")
    stop = threading.Event()
    wrong: list[str] = []
    seen: set[str] = set()

    def read() -> None:
        while not stop.is_set():
            try:
                pointer = read_pointers(ObjectStore(str(tmp_path)), [("acme", "routing")])["acme", "routing"]
                if isinstance(pointer, Pointer) and pointer.version and pointer.version not in seen:
                    assert artifacts.load(pointer.version).state["decide"]["demos"][0]["query"] == "x" * BYTES
                    seen.add(pointer.version)
                elif isinstance(pointer, Exception):
                    raise pointer
            except Exception as e:  # noqa: BLE001 - whatever it is, the test must see it
                wrong.append(repr(e)[:300])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    unfinished = 0
    # One process to fork from, or each kill would pay for the imports.
    server = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(KILLS)], stdout=subprocess.PIPE, text=True
    )
    out, _ = server.communicate(timeout=300)
    stop.set()
    for reader in readers:
        reader.join()
    assert out.split() == [str(-signal.SIGKILL)] * KILLS
    for folder in (tmp_path / "acme" / "routing" / "versions").iterdir():
        names = {path.name for path in folder.iterdir()}
        if "manifest.json" in names:
            artifacts.load(folder.name)
        else:
            unfinished += 1
            with pytest.raises(InvalidArtifact, match="does not exist"):
                artifacts.load(folder.name)
    assert wrong == []
    assert len(seen) > 1
    assert unfinished > 0, "no kill fell into a write, so nothing was tested"


def test_a_pointer_is_always_one_of_those_that_were_written(root: str) -> None:
    files = ObjectStore(root)
    path = "acme/routing/active.json"
    long = {f"v{i}": 0.0 for i in range(100)}
    written = [Pointer(version=f"v{i}", sequence=i, canary=long).model_dump_json().encode() for i in range(1, 41)]
    files.replace(path, written[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            content = files.read_many([path])[path]
            seen.add(content if isinstance(content, bytes) else repr(content).encode())

    reader = threading.Thread(target=read)
    reader.start()
    for content in written:
        files.replace(path, content)
        time.sleep(0.002)
    stop.set()
    reader.join()
    assert len(seen) > 1
    assert seen <= set(written)


def test_of_many_writers_exactly_one_creates_a_file(root: str) -> None:
    created: list[int] = []
    barrier = threading.Barrier(8)

    def create(number: int) -> None:
        files = ObjectStore(root)
        barrier.wait()
        if files.create("acme/routing/transitions/00000001.json", str(number).encode()):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = created
    assert ObjectStore(root).read("acme/routing/transitions/00000001.json") == str(winner).encode()


def test_a_move_that_another_one_overtook_is_refused(root: str) -> None:
    artifacts = VersionStore(ObjectStore(root), "acme", "routing")
    first = store(artifacts, made_program("acme", demos=["1"]), 1, active=True)
    second = store(artifacts, made_program("acme", demos=["2"]), 2)
    artifacts.transition(second, expected=first, actor="a", reason="")
    with pytest.raises(PromotionConflict):
        artifacts.transition(first, expected=first, actor="b", reason="")
    active = artifacts.active()
    assert active
    assert active.version == second


def test_pointers_of_many_are_read_in_one_go_and_a_damaged_one_is_its_own_problem(root: str) -> None:
    files = ObjectStore(root)
    version = store(VersionStore(files, "acme", "routing"), made_program("acme"), active=True)
    files.replace("rival/routing/active.json", b"{")
    found = read_pointers(files, [("acme", "routing"), ("rival", "routing"), ("nobody", "routing")])
    assert found["acme", "routing"] == Pointer(version=version, sequence=1)
    assert isinstance(found["rival", "routing"], InvalidArtifact)
    assert found["nobody", "routing"] is None
    assert read_pointers(files, []) == {}


def test_serving_follows_promotions(root: str) -> None:
    artifacts = VersionStore(ObjectStore(root), "acme", "routing")
    first = store(artifacts, made_program("acme", demos=["1"]), 1, active=True)
    lm = dspy.LM("stand-in/nearest-demo", engine=StandInEngine(), cache=False)
    serving = Serving(root, lm=lm, refresh_seconds=3600, load_seconds=30)
    agents = ["search_agent", "report_agent"]
    assert serving.decide("acme", "routing", agents=agents, query="x").version == first
    second = store(artifacts, made_program("acme", demos=["2"]), 2, active=True)
    serving.refresh()
    assert serving.decide("acme", "routing", agents=agents, query="x").version == second


def test_a_server_that_is_down_is_an_error_that_may_go_away(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    files = ObjectStore(f"{s3}/{os.getpid()}")
    with pytest.raises(ArtifactStoreUnavailable, match="AUTOOPT_ARTIFACTS_URL"):
        files.read("acme/routing/active.json")
    (problem,) = read_pointers(files, [("acme", "routing")]).values()
    assert isinstance(problem, ArtifactStoreUnavailable)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
