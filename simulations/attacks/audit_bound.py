"""A lower bound on epsilon from one run: how many canaries' membership was guessed aright.

Steinke, Nasr & Jagielski, "Privacy auditing with one (1) training run", NeurIPS 2023. Each of m
canaries is put in by a fair coin. Whoever sees what was released guesses for some of them whether
they were in. Under (epsilon, delta)-differential privacy the number of right guesses is bounded
almost as if each were right with probability ``e^epsilon / (1 + e^epsilon)``, although all share
one run; more right guesses than that refute the claim.

Such a bound holds for any mechanism, and stays far below what Gaussian noise costs. Mahloujifar,
Melis & Chaudhuri, "Auditing f-differential privacy in one run", ICML 2025, compare the same guesses
with one trade-off curve; with a Gaussian's, the bound comes near the accountant's epsilon.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulations.attacks.audit_estimate import gaussian_epsilon

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CONFIDENCE = 0.95
SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # of the canaries that are guessed, each tried
STEP = 1e-4  # of the bound
SHIFT_STEP = 1e-3  # of the distance of two Gaussians
LARGEST = 60.0  # an epsilon that is searched for
LARGEST_SHIFT = 30.0  # of two Gaussians, that is searched for


@dataclass(frozen=True)
class Bound:
    """What an audit found.

    Attributes:
        epsilon: lower bound at `CONFIDENCE`, of any mechanism; 0 where nothing is refuted.
    gaussian: lower bound at `CONFIDENCE`, of one whose trade-off curve is a Gaussian's.
        canaries: m.
        guesses: how many were guessed, where the bound is largest.
        right: of these.
    """

    epsilon: float
    gaussian: float
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
    between = binom.cdf(right - 1, guesses, chance) - binom.cdf(right - steps - 1, guesses, chance)
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


def refutes_gaussian(
    canaries: int, guesses: int, right: int, shift: float, level: float = 1 - CONFIDENCE
) -> bool:
    """Say whether the guesses refute Gaussian differential privacy of parameter `shift`.

    The paper's Algorithm 2 ("audit_rh_with_cap"): h and r bound, for one canary, the chances of a
    guess that is wrong, or right, while at least i guesses in all are right. Starting from the
    claim that so many right guesses have a chance of at most `level`, the curve
    ``h >= Phi(Phi^-1(r) - shift)`` raises both, one i after another; if together they pass the
    share of canaries that are guessed, the claim cannot be.

    Args:
        canaries: m.
        guesses: c', those that were not abstained from.
        right: c, of them.
        shift: mu, the distance of the two unit Gaussians.
        level: of the test.
    """
    from scipy.special import ndtr, ndtri

    hit, miss = level * right / canaries, level * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        raised = max(miss, float(ndtr(ndtri(hit) - shift)))
        if raised == miss:
            break
        hit = min(1.0, hit + i / (guesses - i) * (raised - miss))
        miss = raised
    return hit + miss > guesses / canaries


def refuted_shift(canaries: int, guesses: int, right: int, level: float = 1 - CONFIDENCE) -> float:
    """Find the largest distance of two Gaussians that the guesses refute; 0 for none."""
    if not refutes_gaussian(canaries, guesses, right, 0.0, level):
        return 0.0
    low, high = 0.0, LARGEST_SHIFT
    while high - low > SHIFT_STEP:
        middle = (low + high) / 2
        if refutes_gaussian(canaries, guesses, right, middle, level):
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
    count, level = len(scores), (1 - CONFIDENCE) / len(SHARES)
    order = np.argsort(-scores, kind="stable")
    found, shift = [], 0.0
    for half in sorted({max(1, round(share * count / 2)) for share in SHARES}):
        half = min(half, count // 2)
        right = int(included[order[:half]].sum() + (~included[order[count - half :]]).sum())
        epsilon = lower_bound(count, 2 * half, right, delta, level)
        found.append(Bound(epsilon, 0.0, count, 2 * half, right))
        shift = max(shift, refuted_shift(count, 2 * half, right, level))
    best = max(found, key=lambda bound: (bound.epsilon, bound.guesses))
    return replace(best, gaussian=gaussian_epsilon(0.0, 1.0, shift, 1.0, delta))
