"""`autoopt traces` as a person types it, on spans in a real Phoenix, and the counting beneath."""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoopt_pipeline.modules.catalog import get_module
from autoopt_pipeline.modules.spec import Annotation, Label, LoggedDecision
from autoopt_pipeline.span_contract import NewAnnotation
from autoopt_pipeline.traces.client import Phoenix
from autoopt_pipeline.traces.inspect import as_read, survey
from tests.support.command_line import AGENTS, autoopt
from tests.support.phoenix_traffic import sender_of_spans, wait_for

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LABELS = (Label("search_agent"), Label("report_agent"))


def decision(number: int, attributes: dict, *annotations: Annotation) -> LoggedDecision:
    return LoggedDecision(
        f"{number:016x}", f"{number:032x}", NOW + timedelta(seconds=number), False, attributes, annotations
    )


def review(label: str) -> Annotation:
    return Annotation("HUMAN", label, {"sampling": "random"}, NOW)


DECISIONS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "routing.query": st.sampled_from(["where is it", "write to me@x.org", "", 7]),
            "routing.chosen_agent": st.sampled_from(["search_agent", "report_agent", "moon"]),
            "routing.confidence": st.sampled_from([0.1, 0.9]),
        },
    ),
    max_size=8,
)


@given(DECISIONS)
def test_every_decision_is_counted_once_as_an_example_or_with_its_reason(attributes: list[dict]) -> None:
    spec = get_module("routing")
    decisions = [decision(i, each) for i, each in enumerate(attributes)]
    found = survey(decisions, spec.build_examples(LABELS, decisions))
    assert found.decisions == found.examples + sum(found.unusable.values())
    assert found.examples == sum(found.provenance.values()) == sum(found.labels.values())
    assert found.malformed <= sum(found.unusable.values())
    read = as_read(spec, LABELS, decisions, str, newest=len(decisions) + 1)
    assert sum(each.example is not None for each in read) == found.examples
    assert sorted(each.unusable for each in read if each.unusable) == sorted(
        reason for reason, count in found.unusable.items() for _ in range(count)
    )


def test_what_is_shown_is_redacted_also_where_it_cannot_be_used() -> None:
    attributes = {"routing.query": "write to me@x.org", "routing.chosen_agent": "you@x.org"}
    (read,) = as_read(
        get_module("routing"), LABELS, [decision(1, attributes)], lambda t: t.replace("x.org", "…"), newest=1
    )
    assert read.unusable == "no confidence, and nobody reviewed it"
    assert read.inputs["query"] == "write to me@…"
    assert read.answer == {"agent": "you@…"}


def test_the_newest_decisions_come_first() -> None:
    decisions = [decision(i, {"routing.query": f"query {i}"}, review("search_agent")) for i in range(5)]
    read = as_read(get_module("routing"), LABELS, decisions, str, newest=2)
    assert [each.inputs["query"] for each in read] == ["query 4", "query 3"]


def test_a_decision_that_is_usable_only_beside_others_is_shown_as_a_run_reads_it() -> None:
    spec = get_module("cross_modal")

    def fused(number: int, quality: float, *, fuse: bool) -> LoggedDecision:
        return decision(
            number,
            {
                "cross_modal.query": "the chart and the clip of the launch",
                "cross_modal.detected_modalities": '[{"modality": "video", "confidence": 0.9},'
                ' {"modality": "image", "confidence": 0.8}]',
                "cross_modal.fused": fuse,
                "cross_modal.primary": "video",
                "cross_modal.secondary": "image",
                "cross_modal.confidence": 0.9,
                "cross_modal.success": True,
                "cross_modal.quality": quality,
            },
        )

    decisions = [fused(i, 0.9, fuse=True) for i in range(4)] + [fused(i, 0.1, fuse=False) for i in range(4, 8)]
    found = spec.build_examples(spec.labels or (), decisions)
    read = as_read(spec, spec.labels or (), decisions, str, newest=len(decisions))
    assert [each.example for each in reversed(read) if each.example] == list(found.examples)
    assert found.examples


@pytest.fixture
def spans(home: Path, phoenix: Phoenix, tenant: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Sends one span of the tenant, which has four agents, and returns its id."""
    monkeypatch.setenv("AUTOOPT_PHOENIX_ENDPOINT", phoenix.endpoint)
    monkeypatch.setenv("AUTOOPT_SETTLING_SECONDS", "0")
    autoopt("tenants", "add", tenant, *AGENTS)
    return sender_of_spans(phoenix, tenant)


def stats(tenant: str, status: int = 0) -> dict:
    return json.loads(autoopt("traces", "stats", tenant, "--json", status=status))


def test_spans_are_counted_and_shown_as_a_run_reads_them(
    spans: Callable[..., str], phoenix: Phoenix, tenant: str
) -> None:
    for name in ("cogniverse.ruting", "cogniverse.ruting", "[red]odd[/]"):
        spans(name, {"routing.query": "x"})
    good = {"routing.chosen_agent": "search_agent", "routing.confidence": 0.9}
    spans("cogniverse.routing", {"routing.query": "mail [bold]me@x.org", **good})
    spans("cogniverse.routing", good)
    reviewed = spans("cogniverse.routing", {"routing.query": "the second", **good})
    wait_for(phoenix, tenant, 6)
    phoenix.annotate([NewAnnotation(reviewed, "routing_annotation", "HUMAN", "report_agent", {"sampling": "random"})])
    told = stats(tenant)
    routing = told["modules"]["routing"]
    assert routing["provenance"] == {"human": 1, "judge": 0, "outcome": 1}
    assert (routing["independent"], routing["malformed"], routing["redacted"]) == (1, 1, 1)
    assert routing["labels"] == {"search_agent": 1, "report_agent": 1}
    assert routing["unusable"] == {"no query": 1}
    assert routing["oldest"] < routing["newest"] < told["window"]["end"]
    assert told["other_span_names"] == {"cogniverse.ruting": 2, "[red]odd[/]": 1}
    printed = autoopt("traces", "stats", tenant)
    assert "spans that no module reads: cogniverse.ruting 2, [red]odd[/] 1" in printed
    assert "not usable (1 malformed): 1 no query" in printed

    shown = json.loads(autoopt("traces", "sample", tenant, "--module", "routing", "--json"))["modules"]["routing"]
    assert [(each["label"], each["provenance"], each["unusable"]) for each in shown] == [
        ("report_agent", "human", None),
        (None, None, "no query"),
        ("search_agent", "outcome", None),
    ]
    assert shown[0]["span_id"] == reviewed
    assert shown[0]["answer"] == {"agent": "search_agent"}
    printed = autoopt("traces", "sample", tenant, "-n", "9")
    assert "query: mail [bold]<mail>" in printed
    assert "right: report_agent (human, drawn at random)" in printed


def test_a_module_that_cannot_read_is_an_error_beside_the_others(
    spans: Callable[..., str], phoenix: Phoenix, tenant: str
) -> None:
    spans("cogniverse.routing", {"routing.query": "x"})
    wait_for(phoenix, tenant, 1)
    autoopt("config", "set", tenant, "agents=[]")
    told = stats(tenant, status=2)
    assert "routing has 0 agents" in told["errors"]["routing"]
    assert told["modules"]["modality"]["decisions"] == 1
    assert "routing has 0 agents" in autoopt("traces", "sample", tenant, status=2)


def test_a_missing_project_tenant_or_module_is_one_line(spans: Callable[..., str], tenant: str) -> None:
    unknown = f"t{uuid.uuid4().hex[:12]}"
    for command, words in (
        (["stats", tenant], "has no project"),
        (["sample", tenant], "has no project"),
        (["stats", unknown], "has no configuration"),
        (["sample", tenant, "--module", "ruting"], "did you mean 'routing'"),
    ):
        error = autoopt("traces", *command, status=2)
        assert words in error
        assert error.count("\n") == 1
