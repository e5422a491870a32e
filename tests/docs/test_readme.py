"""The README is true: its targets exist; so is what it leaves to other documents.

Its commands are run by tests/integration/test_wheel.py.
"""

import re

from autoopt_pipeline.modules.catalog import modules
from autoopt_pipeline.registry.records import Verdict
from autoopt_pipeline.scheduling.conditions import Reason
from tests.support.project import PROJECT

README = (PROJECT / "README.md").read_text()
DOCS = PROJECT / "docs"


def test_the_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    named = README + (PROJECT / "CONTRIBUTING.md").read_text()
    assert set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", named, re.MULTILINE)) <= targets


def test_every_decision_and_every_verdict_is_explained() -> None:
    for page, words in (("trigger-and-status.md", Reason), ("promotions.md", Verdict)):
        explained = re.findall(r"^\| `(\w+)` \| \w", (DOCS / page).read_text(), re.MULTILINE)
        assert {word.value for word in words} <= {*explained}


def test_the_annotations_spans_and_attributes_of_the_contract_are_documented() -> None:
    documented = (DOCS / "spans.md").read_text() + (DOCS / "modules.md").read_text()
    for name, spec in modules().items():
        assert f"`{name}`" in documented
        assert f"`{spec.contract.annotation}`" in documented
        assert f"`{spec.contract.span_name}`" in documented
        for paths in spec.contract.answers.values():
            assert f"`{paths[0]}`" in documented
