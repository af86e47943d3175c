"""An estimate of epsilon from canaries' scores, of which each kind is fitted by a Gaussian.

Andrew et al., "One-shot empirical privacy estimation for federated learning", ICLR 2024, section 3.
In many dimensions the cosine of what was released and a random direction that had no part in it is
``N(0, 1/d)``; of one that had, it is a Gaussian that is fitted. Epsilon is what tells the two apart
at delta. An estimate, without confidence: it may be above or below the truth.
"""

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LARGEST = 1e3  # an epsilon that is searched for
POINTS = 100_001  # of the grid that densities are integrated on
REACH = 12.0  # deviations around both means that the grid spans


def cosines(directions: NDArray[np.floating], released: NDArray[np.floating]) -> FloatArray:
    """Compute the cosines of unit vectors [m, d] and what was released, [d]; 0 for nothing."""
    length = float(np.linalg.norm(released))
    product: FloatArray = (directions @ released).astype(np.float64)
    return product / length if length else np.zeros(len(directions))


def gaussian_epsilon(
    mean: float, deviation: float, other_mean: float, other_deviation: float, delta: float
) -> float:
    """Find the epsilon at which two Gaussians are (epsilon, delta)-close, both ways.

    The divergence ``delta(epsilon) = integral of max(0, p - e^epsilon q)`` is integrated on a grid
    and falls with epsilon, which is found by halving.

    Returns:
        Epsilon; `LARGEST` where the two are as good as apart.

    >>> round(gaussian_epsilon(0.0, 1.0, 1.0, 1.0, 1e-5), 2)  # Gaussian mechanism, noise 1
    4.38
    """
    spread = max(deviation, other_deviation)
    if not spread:
        return 0.0 if mean == other_mean else LARGEST
    if not min(deviation, other_deviation):
        return LARGEST
    start = min(mean - REACH * deviation, other_mean - REACH * other_deviation)
    stop = max(mean + REACH * deviation, other_mean + REACH * other_deviation)
    grid = np.linspace(start, stop, POINTS)
    logs = [
        -(((grid - m) / s) ** 2) / 2 - math.log(s * math.sqrt(2 * math.pi))
        for m, s in ((mean, deviation), (other_mean, other_deviation))
    ]
    first, second = logs
    return max(_one_way(first, second, grid, delta), _one_way(second, first, grid, delta))


def _one_way(first: FloatArray, second: FloatArray, grid: FloatArray, delta: float) -> float:
    step = float(grid[1] - grid[0])

    def divergence(epsilon: float) -> float:
        ratio = np.minimum(epsilon + second - first, 0.0)  # log of e^epsilon q / p, where below 1
        return float((np.exp(first) * -np.expm1(ratio)).sum() * step)

    if divergence(0.0) <= delta:
        return 0.0
    low, high = 0.0, LARGEST
    if divergence(high) > delta:
        return LARGEST
    while high - low > 1e-4 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if divergence(middle) > delta else (low, middle)
    return (low + high) / 2
