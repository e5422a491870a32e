"""A decision of the gate, and the report of a run, without a comparison that led to them."""

from datetime import UTC, datetime

from autoopt_pipeline.evaluation.gate import Calibration, Comparison, GateDecision
from autoopt_pipeline.optimization.report import Report
from autoopt_pipeline.registry.records import Verdict

AT = datetime(2026, 1, 1, tzinfo=UTC)

PROVEN = GateDecision(
    verdict=Verdict.PROMOTED,
    reason="proven better",
    alpha=0.02,
    comparison=Comparison(
        cases=300,
        incumbent_score=0.6,
        candidate_score=0.75,
        gain=0.15,
        fixed=50,
        broken=5,
        reviews=60,
        p_value=0.001,
        by_judge=4,
    ),
    calibration=Calibration(0.2, 0.1),
    power=None,
    spent=0.02,
)

REPORT = Report(
    tenant_id="acme",
    module="routing",
    verdict=Verdict.REJECTED,
    reason="",
    window_start=AT,
    window_end=AT,
    decisions=100,
    examples={"duplicates": 0, "near_duplicates": 0},
    provenance={"human": 100},
    balance={"a": 50, "b": 50},
    unusable={},
    incumbent_version=None,
    version=None,
    active_version=None,
    lm="stand-in",
    stand_in=False,
)
