"""What a promotion rests on, on stores that do not do it: a file is created only once."""

import errno
import http.client
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from autoopt_pipeline.errors import ArtifactStoreUnavailable, InvalidSettings
from autoopt_pipeline.registry.object_store import CHECK_FOLDER, ObjectStore

CONFLICT = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ConditionalRequestConflict</Code>'
    b"<Message>A conflicting operation occurred during the upload</Message></Error>"
)


@dataclass
class Between:
    """A proxy before a real S3 server (moto): answers 409 as often as `conflicts` says, or drops the condition.

    `conditional` are the paths of the writes that came with a condition.
    """

    conflicts: int = 0
    drops_condition: bool = False
    conditional: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Between]:
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    between = Between()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = dict(self.headers)
            if self.command == "PUT" and "if-none-match" in {name.lower() for name in headers}:
                between.conditional.append(self.path)
                if between.conflicts > 0:
                    between.conflicts -= 1
                    self.answer(409, [("content-type", "application/xml")], CONFLICT)
                    return
                if between.drops_condition:
                    headers = {name: value for name, value in headers.items() if name.lower() != "if-none-match"}
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            content = response.read()
            kept = [
                (name, value)
                for name, value in response.getheaders()
                if name.lower() not in {"transfer-encoding", "connection", "content-length"}
            ]
            length = response.getheader("content-length") if self.command == "HEAD" else None
            self.answer(response.status, kept, content, length)

        def answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, length: str | None = None
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

        def log_message(self, format: str, *args: object) -> None:
            return

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    for name, value in (("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s"), ("DEFAULT_REGION", "us-east-1")):
        patch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.core.url_to_fs("s3://checked")[0].makedirs("checked", exist_ok=True)
    yield between
    proxy.shutdown()
    server.stop()
    patch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def root(s3: Between) -> str:
    s3.conflicts, s3.drops_condition = 0, False
    s3.conditional.clear()
    return f"s3://checked/{uuid.uuid4().hex}"


def test_a_store_is_tried_once_before_anything_rests_on_it(s3: Between, root: str) -> None:
    files = ObjectStore(root)
    assert files.create("a/1.json", b"one")
    assert not files.create("a/1.json", b"two")
    assert ObjectStore(root).create("a/2.json", b"three")
    tried = [path for path in s3.conditional if CHECK_FOLDER in path]
    assert len(tried) == 2
    assert files.names(CHECK_FOLDER) == []


def test_a_store_that_ignores_conditions_is_refused_before_anything_is_written(s3: Between, root: str) -> None:
    s3.drops_condition = True
    files = ObjectStore(root)
    with pytest.raises(
        InvalidSettings, match=r"two writers can create the same file.* -> use a store with conditional"
    ):
        files.create("a/1.json", b"one")
    assert files.read("a/1.json") is None
    assert files.names(CHECK_FOLDER) == []


@pytest.mark.parametrize("conflicts", [1, 3])
def test_a_conflict_that_passes_is_waited_for(s3: Between, root: str, conflicts: int) -> None:
    files = ObjectStore(root)
    files.create("a/1.json", b"one")
    s3.conflicts = conflicts
    assert files.create("a/2.json", b"two")
    assert files.read("a/2.json") == b"two"
    assert s3.conflicts == 0


def test_a_conflict_that_does_not_pass_is_an_error(s3: Between, root: str) -> None:
    files = ObjectStore(root)
    files.create("a/1.json", b"one")
    s3.conflicts = 100
    with pytest.raises(ArtifactStoreUnavailable, match=r"a/2\.json"):
        files.create("a/2.json", b"two")


def test_a_volume_without_hard_links_is_named_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def link(source: str, target: str) -> None:
        asked.append(target)
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", link)  # as SMB and blobfuse answer
    with pytest.raises(InvalidSettings, match=r"no hard links .* -> use a local or an NFS volume"):
        ObjectStore(str(tmp_path)).create("a/1.json", b"one")
    assert asked == [str(tmp_path / "a" / "1.json")]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_store_whose_driver_is_not_installed_names_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None; from autoopt_pipeline.registry.object_store import ObjectStore; ObjectStore('s3://b/x')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    error = done.stderr.strip().splitlines()[-1]
    assert "artifact root 's3://b/x': Install s3fs to access S3 -> pip install 'autoopt-pipeline[s3]'" in error
