"""The shortest combination of vectors whose weights stay near given shares, by pairs of weights."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TOLERANCE = 1e-12  # of the gradient's spread, relative to the longest vector's squared length
MOST_STEPS = 200  # per vector


def shortest_near(gram: Floats, shares: Floats, epsilon: float) -> Floats:
    """Minimise ``w' G w`` over weights that sum to 1 with ``|w_k - share_k| <= epsilon, w_k >= 0``.

    Each step moves weight from the vector along which the sum grows fastest to the one along which
    it shrinks fastest, as far as is best or allowed (sequential minimal optimisation: Platt 1998;
    the pair that violates the optimality conditions most: Keerthi et al. 2001).

    Args:
        gram: [n, n], products of the vectors.
        shares: [n], >= 0, summing to 1; where it starts.
        epsilon: near 0 it gives the shares back; 1 asks for a mean and nothing else.

    Returns:
        [n], the weights.

    >>> shortest_near(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.array([0.9, 0.1]), 0.1)
    array([0.8, 0.2])
    """
    weights = shares.astype(np.float64)
    low, high = np.maximum(0.0, shares - epsilon), np.minimum(1.0, shares + epsilon)
    slope = gram @ weights  # half the gradient
    enough = TOLERANCE * max(float(np.diag(gram).max()), np.finfo(np.float64).tiny)
    for _ in range(MOST_STEPS * len(shares)):
        up = int(np.where(weights < high, slope, np.inf).argmin())
        down = int(np.where(weights > low, slope, -np.inf).argmax())
        gap = slope[down] - slope[up]
        if not enough < gap < np.inf:
            break
        bend = gram[up, up] + gram[down, down] - 2 * gram[up, down]
        room = min(high[up] - weights[up], weights[down] - low[down])
        step = min(room, gap / bend) if bend > 0 else room
        weights[up] = min(weights[up] + step, high[up])
        weights[down] = max(weights[down] - step, low[down])
        slope = slope + step * (gram[:, up] - gram[:, down])
    return weights
