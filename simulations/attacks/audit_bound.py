"""A lower bound on epsilon from one run: how many canaries' membership was guessed aright.

Steinke, Nasr & Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023. Each of m
canaries is put in by a fair coin. Whoever sees what was released guesses for some of them whether
they were in. Under (epsilon, delta)-differential privacy the number of right guesses is bounded
almost as if each were right with probability ``e^epsilon / (1 + e^epsilon)``, although all share
one run; more right guesses than that refute the claim.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CONFIDENCE = 0.95
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # of the canaries that are guessed, each tried
STEP = 1e-4  # of the bound
LARGEST = 60.0  # an epsilon that is searched for


@dataclass(frozen=True)
class Bound:
    """What an audit found.

    Attributes:
        epsilon: lower bound at `CONFIDENCE`; 0 where nothing is refuted.
        canaries: m.
        guesses: how many were guessed, where the bound is largest.
        right: of these.
    """

    epsilon: float
    canaries: int
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound the chance of so many right guesses under (epsilon, delta)-differential privacy.

    The paper's Theorem 5.2 with coins that are fair: with W the sum of r Bernoulli variables of
    mean ``e^epsilon / (1 + e^epsilon)``,
    ``P(right >= v) <= P(W >= v) + 2 m delta max_i P(v > W >= v - i) / i``.

    Args:
        canaries: m.
        guesses: r, those that were not abstained from.
        right: v, of them.
        epsilon: of the claim.
        delta: of the claim.

    Returns:
        At most 1; small where the claim is refuted.

    >>> round(p_value(3, 3, 3, math.log(9), 0.0), 4)  # 0.9 ** 3
    0.729
    """
    from scipy.stats import binom

    chance = 1 / (1 + math.exp(-epsilon))
    beyond = float(binom.sf(right - 1, guesses, chance))
    if not delta or not right:
        return min(beyond, 1.0)
    steps = np.arange(1, right + 1)
    between = binom.cdf(right - 1, guesses, chance) - binom.cdf(
        right - steps - 1, guesses, chance
    )
    worst = float((between / steps).max())
    return min(beyond + 2 * canaries * delta * worst, 1.0)


def lower_bound(
    canaries: int, guesses: int, right: int, delta: float, level: float = 1 - CONFIDENCE
) -> float:
    """Find the largest epsilon that the guesses refute at a level; 0 for none.

    >>> round(lower_bound(100, 100, 100, 0.0), 2)  # all right: q ** 100 = 0.05
    3.49
    """
    if p_value(canaries, guesses, right, 0.0, delta) >= level:
        return 0.0
    low, high = 0.0, LARGEST
    while high - low > STEP:
        middle = (low + high) / 2
        if p_value(canaries, guesses, right, middle, delta) < level:
            low = middle
        else:
            high = middle
    return low


def audit(scores: FloatArray, included: BoolArray, delta: float) -> Bound:
    """Guess from scores, and bound epsilon.

    The highest scores are guessed to be in and as many of the lowest to be out, for each of
    `SHARES`; each is tested at a level divided by their number, so that the best of them holds at
    `CONFIDENCE` (Bonferroni).

    Args:
        scores: [m] high where a canary seems to be in.
        included: [m] whether it was.
        delta: of the claim.
    """
    count = len(scores)
    order = np.argsort(-scores, kind="stable")
    best = Bound(0.0, count, 0, 0)
    for share in SHARES:
        half = max(1, round(share * count / 2))
        half = min(half, count // 2)
        right = int(included[order[:half]].sum() + (~included[order[count - half :]]).sum())
        level = (1 - CONFIDENCE) / len(SHARES)
        epsilon = lower_bound(count, 2 * half, right, delta, level)
        if epsilon >= best.epsilon:
            best = Bound(epsilon, count, 2 * half, right)
    return best
