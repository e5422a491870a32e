"""The alpha ledger: how much risk of a false promotion the test of each finalist may take.

All charges since the last promotion share one budget, so nightly retries cannot buy a promotion by luck. The k-th
charge gets FAMILY_ALPHA / (zeta(1.5) k^1.5), and the sum over all k is FAMILY_ALPHA. This series is flatter than the
usual 1/k², which finds as many real gains at first but fewer after many rejections (bench/README.md).
"""

from collections.abc import Sequence
from datetime import datetime

from autoopt_pipeline.registry.records import LedgerEntry

# Upper limit of the chance of any false promotion between two promotions.
FAMILY_ALPHA = 0.05

_DECAY = 1.5
# The sum of 1/k^1.5 over all k >= 1: the zeta function at 1.5.
_SUM = 2.612375348685488


def next_charge(
    charges: Sequence[LedgerEntry],
    *,
    attempt: str,
    epoch: int,
    at: datetime,
    candidate_digest: str,
    holdout_digest: str,
    incumbent: str | None,
) -> LedgerEntry:
    """Return the charge for this test. The caller enters it in the ledger before both programs are compared.

    `attempt` is the run (the same for its retries) with its model. Within an attempt, the same candidate on the same
    holdout against the same incumbent is the same test, so its earlier charge is returned. The caller must not repeat
    a test that was judged at this charge, because a model may answer differently the second time. In another run it is
    another test. `epoch` counts the transitions so far that reset the alpha budget (see `registry.records.Transition`).
    """
    for charge in charges:
        if (charge.attempt, charge.candidate_digest, charge.holdout_digest, charge.incumbent) == (
            attempt,
            candidate_digest,
            holdout_digest,
            incumbent,
        ):
            return charge
    since_promotion = sum(charge.epoch == epoch for charge in charges)
    return LedgerEntry(
        sequence=max((charge.sequence for charge in charges), default=0) + 1,
        attempt=attempt,
        epoch=epoch,
        at=at,
        candidate_digest=candidate_digest,
        holdout_digest=holdout_digest,
        incumbent=incumbent,
        alpha=alpha_of_charge(since_promotion + 1),
    )


def alpha_of_charge(k: int) -> float:
    """Return the alpha of the k-th charge since the last promotion, counted from 1."""
    return FAMILY_ALPHA / (_SUM * k**_DECAY)
