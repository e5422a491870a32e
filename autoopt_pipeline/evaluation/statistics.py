"""Statistics of paired differences: is a candidate better than the incumbent on the same cases?

A difference is the candidate's score minus the incumbent's on one case, -1 to 1. Everything is exact or in closed
form, in plain Python: no resampling, so the same cases always give the same numbers.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

# The exact test rounds differences to 1/GRID. Finer differences of scores mean nothing.
GRID = 100

# Chance of detecting a real gain with the cases that are needed. 80 % is the usual convention.
POWER = 0.80

# Fractions of its wealth that the e-process stakes on each case. They are evenly spread because the best one depends on
# how often the candidate loses a case, which is unknown beforehand.
BETS = tuple((k + 0.5) / 20 for k in range(20))


@dataclass(frozen=True)
class Power:
    """The cases that are `needed` to detect `gain` at `alpha` with a chance of `POWER`, and the cases that we `have`.

    `detectable` is the smallest gain that the present cases can show.
    """

    gain: float
    alpha: float
    needed: int
    have: int
    detectable: float

    def __str__(self) -> str:
        return (
            f"to see +{100 * self.gain:.0f} points you need about {self.needed} held-out traces "
            f"at alpha {self.alpha:.2g}; you have {self.have}, enough for +{math.ceil(100 * self.detectable):.0f}"
        )


def sign_flip_p(differences: Sequence[float]) -> float:
    """One-sided mid-p value of the exact paired randomization test (Fisher 1935, Pitman 1937).

    If both programs are equally good, each difference could just as well have the other sign. p is the chance that
    random signs add up to more than the observed sum, plus half the chance of exactly that sum (mid-p: nearly exact,
    while the strict test is too strict). For scores of 0 and 1 it is the mid-p McNemar test (Fagerland, Lydersen &
    Laake, BMC Med Res Methodol 2013).
    """
    steps = [step for difference in differences if (step := round(GRID * difference))]
    unit = math.gcd(*steps)
    sizes = sorted(abs(step) // unit for step in steps)
    observed = sum(step // unit for step in steps if step > 0)
    # The coefficients of the product of (1 + x^size) are the distribution of the sum of the positive differences. One
    # big integer holds them, with `width` bits each, which is wide enough for their sum of 2^n.
    width = len(sizes) + 1
    ways = 1
    for size in sizes:
        ways += ways << (size * width)
    mask = (1 << width) - 1
    # A number's digits to the base 2^width add up to its remainder modulo 2^width - 1.
    above = (ways >> ((observed + 1) * width)) % mask
    equal = (ways >> (observed * width)) & mask
    return (2 * above + equal) / (1 << width)


def log_e_value(differences: Sequence[float]) -> float:
    """Natural logarithm of the evidence E against "no better on average", valid at any time.

    E is the mean wealth of gamblers who start with 1 and stake a fixed share on the candidate in every case. If the
    candidate is no better, E is a supermartingale, so the chance that it ever reaches 1/alpha is at most alpha
    (Ville 1939; betting as in Waudby-Smith & Ramdas, JRSS B 2024). Cases are in order of time, each once.
    """
    counts = Counter(differences)
    logs = [sum(count * math.log1p(bet * d) for d, count in counts.items()) for bet in BETS]
    largest = max(logs)
    return largest + math.log(sum(math.exp(log - largest) for log in logs) / len(logs))


def spread(differences: Sequence[float]) -> float:
    """Return the mean squared difference. For scores of 0 and 1 it is the fraction of differing cases."""
    return sum(d * d for d in differences) / len(differences)


def cases_needed(gain: float, alpha: float, spread: float) -> int:
    """Return the number of cases that show a true gain (above 0) at `alpha` with a chance of `POWER`.

    This is Connor's formula for McNemar's test (Biometrics 1987) with the mean squared difference instead of the
    fraction of discordant cases. The variance is `spread` under the null hypothesis and `spread - gain²` under the
    gain. Every gain comes with differences, so the spread is at least the gain.
    """
    spread = max(spread, gain)
    normal = NormalDist()
    under_null = -normal.inv_cdf(alpha) * math.sqrt(spread)
    under_gain = normal.inv_cdf(POWER) * math.sqrt(max(spread - gain**2, 0))
    return math.ceil(((under_null + under_gain) / gain) ** 2)


def gain_detectable(cases: int, alpha: float, spread: float) -> float:
    """Return the smallest true gain that `cases` show, to 1/1000, at most 1: the inverse of `cases_needed`."""
    low, high = 0, 1000
    while high - low > 1:
        middle = (low + high) // 2
        if cases_needed(middle / 1000, alpha, spread) <= cases:
            high = middle
        else:
            low = middle
    return high / 1000


def power(differences: Sequence[float], *, gain: float, alpha: float) -> Power:
    """Return the power of these cases at `alpha`. Raises ZeroDivisionError without differences."""
    seen = spread(differences)
    return Power(
        gain=gain,
        alpha=alpha,
        needed=cases_needed(gain, alpha, seen),
        have=len(differences),
        detectable=gain_detectable(len(differences), alpha, seen),
    )


@dataclass(frozen=True)
class Interval:
    """The interval that holds a value in 95 of 100 cases."""

    low: float
    high: float


# Half the width, in standard errors, of an interval that holds a value in 95 of 100 cases.
Z95 = NormalDist().inv_cdf(0.975)


def score_interval(score: float, cases: int) -> Interval:
    """Return Wilson's interval (JASA 1927) of a score, 0 to 1, that is the mean of `cases` scores.

    It is exact enough for right and wrong answers, and too wide for partial credit, which varies less.
    """
    spread = Z95**2 / cases
    middle = (score + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(score * (1 - score) / cases + spread / (4 * cases))
    return Interval(max(0.0, middle - half), min(1.0, middle + half))


def gain_interval(gain: float, discordant: int, cases: int) -> Interval:
    """Return the normal interval of a mean paired difference, -1 to 1, of `cases` of which `discordant` are not 0.

    It is for people to look at: the gate decides by an exact test. With partial credit it is too wide.
    """
    half = Z95 * math.sqrt(max(0.0, discordant / cases - gain**2) / cases)
    return Interval(max(-1.0, gain - half), min(1.0, gain + half))
