"""Servers behind an authority of one's own: SSL_CERT_FILE is all that has to be set, and without it all say so."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from autoopt_pipeline.errors import InvalidSettings
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.traces.client import Phoenix
from tests.support.llm_server import llm_server
from tests.support.project import PROJECT

CONNECT = """
import json, os, sys, tempfile
import dagster as dg, dspy
from autoopt_pipeline.clients import Connections
from autoopt_pipeline.lm.metering import Meter
from autoopt_pipeline.lm.models import metered_lm
from autoopt_pipeline.lm.stand_in.engine import StandInEngine
from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.orchestration.launch import submit
from autoopt_pipeline.serving import Serving, trace_to_phoenix
from autoopt_pipeline.settings import load_settings
from autoopt_pipeline.tenants.config import LMSettings
from autoopt_pipeline.devtools.send import send_traffic
from tests.support.phoenix_traffic import requests

tenant, phoenix_url, model_url, trusted = sys.argv[1:]
found = {}

def tell(name, what):
    try:
        found[name] = str(what())
    except BaseException as e:  # as an outage of the model is
        found[name] = f"{type(e).__name__}: {e}"

def model():
    settings = LMSettings(model="openai/m", api_base=model_url)
    program = get_module("modality").build_program(get_module("modality").labels)
    with dspy.context(lm=metered_lm(settings, Meter(max_calls=9, max_tokens=9999)).lm):
        return bool(program(query="a video of cats").modality)

def serving():
    provider = trace_to_phoenix()
    serving = Serving(tempfile.mkdtemp(), lm=dspy.LM("stand-in/x", engine=StandInEngine(), cache=False))
    made = serving.decide(tenant, "routing", agents=["a", "b"], query="x")
    provider.force_flush()
    problems = [problem.remedy for problem in serving.problems() if problem.where == "spans"]
    serving.feedback(made, correct=True)
    return problems or serving.flush(60)

def dagster():
    with dg.instance_for_test() as instance:
        submit(instance, phoenix_url, tenant, ["routing"], {})

tell("client", lambda: len(Connections(load_settings()).phoenix.projects(["any"])))
if trusted:  # else it is tried for half a minute
    tell("traffic", lambda: send_traffic(Connections(load_settings()).phoenix, f"{tenant}2", requests(1)))
tell("model", model)
tell("serving", serving)
tell("dagster", dagster)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ca.pem, and srv.pem and srv.key that it signed for localhost."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    request = ["req", "-newkey", "rsa:2048", "-nodes"]
    sign = ["x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    for arguments in (
        [*request, "-x509", "-days", "2", "-subj", "/CN=An authority of ours", "-keyout", "ca.key", "-out", "ca.pem"],
        [*request, "-subj", "/CN=localhost", "-keyout", "srv.key", "-out", "srv.csr"],
        [*sign, "-req", "-in", "srv.csr", "-days", "2", "-extfile", "names", "-out", "srv.pem"],
    ):
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)
    return folder


@contextmanager
def tls_before(port: int, authority: Path) -> Generator[str]:
    """A TLS proxy before a server on this machine; its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "srv.pem", authority / "srv.key")

    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def handle(client: socket.socket) -> None:
        try:
            secured = context.wrap_socket(client, server_side=True)
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", port))
        threading.Thread(target=pump, args=(secured, server), daemon=True).start()
        pump(server, secured)

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(client,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"https://localhost:{listener.getsockname()[1]}"
    listener.close()


def connected(phoenix: str, model: str, tenant: str, home: Path, **env: str) -> dict[str, Any]:
    """What every connection of the product says in a process with these variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT_")}
    given = {"PYTHONPATH": str(PROJECT), "AUTOOPT_PHOENIX_ENDPOINT": phoenix, "AUTOOPT_HOME": str(home), **env}
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, tenant, phoenix, model, env.get("SSL_CERT_FILE", "")],
        env={**kept, **given},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_one_setting_is_enough_for_all_connections(
    authority: Path, phoenix: Phoenix, tenant: str, tmp_path: Path
) -> None:
    phoenix_port = int(phoenix.endpoint.rpartition(":")[2])
    with llm_server() as llm, tls_before(phoenix_port, authority) as outside:
        model_port = int(llm.url.split(":")[2].partition("/")[0])
        with tls_before(model_port, authority) as model:
            found = connected(outside, f"{model}/v1", tenant, tmp_path, SSL_CERT_FILE=str(authority / "ca.pem"))
            assert "refuses" in found.pop("dagster")  # Phoenix is not Dagster, but it was reached
            assert found == {"client": "0", "traffic": "None", "model": "True", "serving": "True"}
            without = connected(outside, f"{model}/v1", tenant, tmp_path)
    assert "CERTIFICATE_VERIFY_FAILED" in without["client"]
    assert "SSL_CERT_FILE" in without["serving"]
    assert "CERTIFICATE_VERIFY_FAILED" in without["model"]
    assert "does not answer" in without["dagster"]


@pytest.mark.parametrize("holds", [None, "no certificate"], ids=["missing", "no PEM"])
def test_a_file_without_authorities_is_one_line(
    holds: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ca.pem"
    if holds:
        file.write_text(holds)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(InvalidSettings, match=f"SSL_CERT_FILE: '{file}' holds no authorities"):
        load_settings()
