"""A candidate that waits for proof: asked, beside the incumbent, whatever new held-out traces come.

Its holdout said "may be better". Only traces that came after that count now, by an e-process: its alpha is charged
once, when the test begins, and looking every night costs nothing more.
"""

from collections.abc import Sequence

from autoopt_pipeline.evaluation.cases import PairedCase
from autoopt_pipeline.evaluation.gate import MIN_GAIN, GateDecision, calibration, clear_loss, compare, reason
from autoopt_pipeline.evaluation.statistics import anytime_p
from autoopt_pipeline.registry.records import Verdict

# From so many new cases on, a candidate whose gain is below MIN_GAIN is given up.
MIN_CASES = 100

# A candidate still unproven after so many new cases is given up: what it may gain is not worth the wait.
MAX_CASES = 1000


def decide_sequentially(cases: Sequence[PairedCase], *, alpha: float) -> GateDecision:
    """Decide on an inconclusive candidate by all cases since its test began, oldest first. ValueError without any.

    `alpha` is that of the sequential test's charge. `inconclusive` means: ask again when more traces have come.
    """
    result = compare(cases, anytime_p)
    if result.p_value <= alpha and result.gain >= MIN_GAIN:
        loss = clear_loss(cases)
        verdict, why = (Verdict.REJECTED, loss) if loss else (Verdict.PROMOTED, "proven better in its sequential test")
    elif result.cases >= MIN_CASES and result.gain < MIN_GAIN:
        verdict, why = Verdict.REJECTED, "given up, its sequential test shows no gain worth a version"
    elif result.cases >= MAX_CASES:
        verdict, why = Verdict.REJECTED, f"given up, unproven after {MAX_CASES} new traces"
    else:
        verdict, why = Verdict.INCONCLUSIVE, "may be better, not proven yet in its sequential test"
    return GateDecision(verdict, reason(why, result, alpha), alpha, result, calibration(cases), None)
