"""How much risk of a false promotion each look at the holdout may take.

All looks since the last promotion share one allowance, so nightly retries cannot buy a promotion by luck: the
k-th gets FAMILY_ALPHA * 6 / (pi² k²), and the sum over all k is FAMILY_ALPHA.
"""

import math
from collections.abc import Sequence
from datetime import datetime

from autoopt_pipeline.artifacts.store import LedgerEntry

FAMILY_ALPHA = 0.05
"""Chance of any false promotion between two promotions, at most."""


def next_charge(
    charges: Sequence[LedgerEntry],
    *,
    at: datetime,
    candidate_digest: str,
    holdout_digest: str,
    incumbent: str | None,
) -> LedgerEntry:
    """The charge for this look. The same candidate on the same holdout is the same look (a retried run)."""
    for charge in charges:
        if (charge.candidate_digest, charge.holdout_digest, charge.incumbent) == (
            candidate_digest,
            holdout_digest,
            incumbent,
        ):
            return charge
    since_promotion = sum(charge.incumbent == incumbent for charge in charges)
    return LedgerEntry(
        sequence=max((charge.sequence for charge in charges), default=0) + 1,
        at=at,
        candidate_digest=candidate_digest,
        holdout_digest=holdout_digest,
        incumbent=incumbent,
        alpha=alpha_of_look(since_promotion + 1),
    )


def alpha_of_look(k: int) -> float:
    """Alpha of the k-th look (from 1) since the last promotion."""
    return FAMILY_ALPHA * 6 / (math.pi**2 * k**2)
