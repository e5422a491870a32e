"""The sequential test of an inconclusive candidate: it is compared with the incumbent on new held-out traces.

Only traces that came after the holdout test count. The test is an e-process, so its alpha is charged once, when it
begins, and deciding again every night costs nothing more.
"""

from collections.abc import Sequence

from autoopt_pipeline.evaluation.cases import PairedCase
from autoopt_pipeline.evaluation.gate import MIN_GAIN, GateDecision, calibration, clear_loss, compare, reason
from autoopt_pipeline.evaluation.statistics import anytime_p
from autoopt_pipeline.registry.records import Verdict

# After this many new cases, a candidate whose gain is below MIN_GAIN is given up.
MIN_CASES = 100

# After this many new cases, an unproven candidate is given up, because its gain is not worth waiting for.
MAX_CASES = 1000


def decide_sequentially(cases: Sequence[PairedCase], *, alpha: float) -> GateDecision:
    """Decide on an inconclusive candidate by all cases since its test began, oldest first.

    `alpha` is that of the sequential test's charge. `inconclusive` means that the test goes on with the next traces.
    Raises ValueError without cases.
    """
    result = compare(cases, anytime_p)
    if result.p_value <= alpha and result.gain >= MIN_GAIN:
        loss = clear_loss(cases)
        verdict, cause = (
            (Verdict.REJECTED, loss) if loss else (Verdict.PROMOTED, "proven better in its sequential test")
        )
    elif result.cases >= MIN_CASES and result.gain < MIN_GAIN:
        verdict, cause = Verdict.REJECTED, "given up because its sequential test shows no gain worth a new version"
    elif result.cases >= MAX_CASES:
        verdict, cause = Verdict.REJECTED, f"given up because it is still not proven after {MAX_CASES} new traces"
    else:
        verdict, cause = Verdict.INCONCLUSIVE, "may be better, not proven yet in its sequential test"
    return GateDecision(verdict, reason(cause, result, alpha), alpha, result, calibration(cases), None)
