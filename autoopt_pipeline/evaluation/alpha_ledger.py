"""The alpha ledger: how much risk of a false promotion each holdout test and each sequential test may take.

All that was charged since the last promotion shares one allowance, so nightly retries cannot buy a promotion by luck:
the k-th charge gets FAMILY_ALPHA / (zeta(1.5) k^1.5), and the sum over all k is FAMILY_ALPHA. Flatter than the usual
1/k², which finds real gains as often at first and less often after many rejections (bench/README.md).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from autoopt_pipeline.registry.records import LedgerEntry

# Chance of any false promotion between two promotions, at most.
FAMILY_ALPHA = 0.05

_DECAY = 1.5
# 1/k^1.5 summed over all k >= 1, the zeta function at 1.5.
_SUM = 2.612375348685488


def next_charge(
    charges: Sequence[LedgerEntry],
    *,
    kind: Literal["holdout_test", "sequential_test"],
    attempt: str,
    epoch: int,
    at: datetime,
    candidate_digest: str,
    holdout_digest: str,
    incumbent: str | None,
) -> LedgerEntry:
    """The charge for this test, to be entered before the test begins.

    `attempt` is the run, the same for its retries, with its model: within it, the same candidate on the same holdout
    against the same incumbent is the same look, and is returned as it stands in `charges`. The caller must not ask
    again what has been judged at that charge, for a model may answer otherwise; in another run that is another look.
    `epoch` counts the judged transitions so far (see `registry.records.Transition`).
    """
    for charge in charges:
        if (charge.kind, charge.attempt, charge.candidate_digest, charge.holdout_digest, charge.incumbent) == (
            kind,
            attempt,
            candidate_digest,
            holdout_digest,
            incumbent,
        ):
            return charge
    since_promotion = sum(charge.epoch == epoch for charge in charges)
    return LedgerEntry(
        sequence=max((charge.sequence for charge in charges), default=0) + 1,
        kind=kind,
        attempt=attempt,
        epoch=epoch,
        at=at,
        candidate_digest=candidate_digest,
        holdout_digest=holdout_digest,
        incumbent=incumbent,
        alpha=alpha_of_charge(since_promotion + 1),
    )


def alpha_of_charge(k: int) -> float:
    """Alpha of the k-th charge (from 1) since the last promotion."""
    return FAMILY_ALPHA / (_SUM * k**_DECAY)
