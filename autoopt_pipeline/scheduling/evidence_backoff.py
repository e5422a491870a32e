"""How much new evidence another attempt needs."""

import math

from autoopt_pipeline.registry.records import Verdict

SHARE_AFTER_LOOK = 0.25
"""New evidence after a rejection, or while a person has yet to approve, as a share of what that attempt had. Attempts
on hardly more than the same traces find hardly anything else, and each makes proof harder for the next."""


def evidence_required(min_samples: int, decisions_at_last_attempt: int, verdict: str) -> int:
    """New traces and annotations that make a module due after an attempt which ended with `verdict`.

    `min_samples` is the tenant's setting and always the least. An empty verdict means: no attempt yet.
    """
    if verdict not in {Verdict.REJECTED, Verdict.AWAITING_APPROVAL}:
        return min_samples
    return max(min_samples, math.ceil(SHARE_AFTER_LOOK * decisions_at_last_attempt))
