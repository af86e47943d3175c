"""Confidence intervals of an attack's figures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.seeding import numpy_generator

Values = NDArray[np.float64]
Z = 1.959964  # of 95 %
DRAWS = 2000  # of a bootstrap


def wilson(right: float, count: int) -> tuple[float, float]:
    """Bound a share at 95 % (Wilson 1927): right where a share is 0 or 1, too.

    >>> [round(end, 3) for end in wilson(10, 10)]
    [0.722, 1.0]
    """
    if not count:
        return 0.0, 1.0
    share, spread = right / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def share(right: float, count: int) -> dict[str, Any]:
    """Describe a share with its interval."""
    low, high = wilson(right, count)
    value = right / count if count else None
    return {"value": value, "low": low, "high": high, "count": count}


def bootstrap(values: Sequence[float] | Values, seed: int = 0) -> dict[str, Any]:
    """Describe a mean with its interval over redrawn entries, at 95 %; none for a single entry."""
    entries = np.asarray(values, dtype=np.float64)
    found: dict[str, Any] = {"value": float(entries.mean()), "low": None, "high": None}
    if len(entries) > 1:
        chosen = numpy_generator(seed, "bootstrap").integers(0, len(entries), (DRAWS, len(entries)))
        means = entries[chosen].mean(axis=1)
        found["low"], found["high"] = np.quantile(means, [0.025, 0.975]).tolist()
    return {**found, "count": len(entries)}


def auc(positive: Values, negative: Values) -> float:
    """Compute the area under the ROC curve: P(a positive scores higher), ties count half.

    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(positive) or not len(negative):
        return math.nan
    ordered = np.sort(negative)
    below, up_to = (np.searchsorted(ordered, positive, side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(negative))


def auc_with_interval(scores: Values, truths: NDArray[np.bool_]) -> dict[str, Any]:
    """Describe an AUC with its interval at 95 %, which is one at an AUC of 1 too.

    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic,
    part 2", 2006, method 5: the values that lie within 1.96 of their own standard errors.
    """
    positive, negative = scores[truths], scores[~truths]
    value, m, n = auc(positive, negative), len(positive), len(negative)
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "positive": m, "negative": n}
    if math.isnan(value):
        return found
    grid = np.linspace(0, 1, 20001)
    pairs = (m + n) / 2 - 1
    spread = grid * (1 - grid) / (m * n)
    spread = spread * (1 + pairs * ((1 - grid) / (2 - grid) + grid / (1 + grid)))
    near = grid[np.abs(grid - value) <= Z * np.sqrt(spread) + 1e-12]
    return {**found, "value": value, "low": float(near.min()), "high": float(near.max())}
