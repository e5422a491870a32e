"""How much new evidence another attempt needs."""

import math

from autoopt_pipeline.registry.records import Verdict

SHARE_AFTER_LOOK = 0.25
"""New evidence after a rejection, or while a version waits to become active, as a fraction of that attempt's evidence.
An attempt on nearly the same traces finds nearly the same, and each attempt makes proof harder for the next."""


def evidence_required(min_samples: int, decisions_at_last_attempt: int, verdict: str) -> int:
    """New traces and annotations that make a module due after an attempt that ended with `verdict`.

    It is never less than the tenant's `min_samples`. An empty verdict means that there was no attempt yet.
    """
    if verdict not in {Verdict.REJECTED, Verdict.AWAITING_APPROVAL, Verdict.WOULD_HAVE_PROMOTED}:
        return min_samples
    return max(min_samples, math.ceil(SHARE_AFTER_LOOK * decisions_at_last_attempt))
