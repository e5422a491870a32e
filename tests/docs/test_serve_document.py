"""docs/serving.md is true: its blocks run as they stand, and its traffic is read back as examples."""

import os
import re
import subprocess
import sys
import uuid
from pathlib import Path

from autoopt_pipeline.registry.object_store import ObjectStore
from autoopt_pipeline.registry.version_store import Pointer, VersionStore
from autoopt_pipeline.serving._serving import _ASYNC_THREADS
from autoopt_pipeline.traces.client import Phoenix
from tests.support.llm_server import llm_server
from tests.support.project import PROJECT
from tests.support.served_decisions import examples, read
from tests.support.stored_programs import made_program, store

DOCUMENT = (PROJECT / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def test_its_blocks_run_and_its_decisions_and_feedback_arrive(phoenix: Phoenix, tmp_path: Path) -> None:
    tenant = f"t{uuid.uuid4().hex[:12]}"  # the document's acme, where no other test is
    root = tmp_path / "artifacts"
    made = made_program(tenant, demos=["where is the report"])
    version = store(VersionStore(ObjectStore(str(root)), tenant, "routing"), made, active=True)
    code = "\n".join([*BLOCKS, "assert serving.flush(60)", "assert not serving.problems()"]).replace("acme", tenant)
    with llm_server() as llm:
        env = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "AUTOOPT_ARTIFACTS_URL": str(root),
            "AUTOOPT_PHOENIX_ENDPOINT": phoenix.endpoint,
            "LLM_API_BASE": llm.url,
            "LLM_API_KEY": "k",
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert llm.calls == len(read(phoenix, tenant, "routing", 3)) + 3  # one plan, one of globex, one by hand
    assert version in done.stdout
    # The other decision nobody reviewed, and it was unsure.
    (first,) = examples("routing", read(phoenix, tenant, "routing", 3)).examples
    assert (first.query, first.right) == ("where is the report?", {"agent": "report_agent"})
    assert len(read(phoenix, tenant, "workflow", 1)) == 1


def test_its_pointer_is_one() -> None:
    (pointer,) = re.findall(r"^```json\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert Pointer.model_validate_json(pointer).canary


def test_its_numbers_are_those_of_the_code() -> None:
    from inspect import signature

    from autoopt_pipeline.serving import Serving, _feedback, _programs

    defaults = {name: p.default for name, p in signature(Serving).parameters.items()}
    for name in ("refresh_seconds", "load_seconds", "max_loaded"):
        assert f"`{name}` ({defaults[name]:g})" in DOCUMENT
    words = " ".join(DOCUMENT.split())
    assert f"during {_programs.IDLE_REFRESHES} refreshes" in words
    assert f"At most {_feedback.CAPACITY} pieces wait" in words
    assert f"repeated for {_feedback.GIVE_UP_SECONDS // 60} minutes" in words
    assert f"up to {_ASYNC_THREADS} at once" in words
