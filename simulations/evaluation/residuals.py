"""Predicted values against true ones, and what is left between them.

No row's value is told: rows are counted in cells. The outer half per cent at either end falls into
the outer cells, so that a few rows far off do not squeeze the rest into one.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_BINS = 40
TAIL = 0.5  # per cent at either end

FloatArray = NDArray[np.float64]


def describe_residuals(truth: FloatArray, value: FloatArray) -> dict[str, Any]:
    """Describe ``predicted - true`` of one output.

    Args:
        truth: [N] in the target's own unit, N >= 1.
        value: [N] predictions, all finite.

    Returns:
        "mean" (the bias), "deviation", "mae", "rmse"; "histogram" of residuals with "edges" and
        "rows"; "cells" with "edges", the same for both axes, and "rows", a list per cell of the
        true value.
    """
    left = value - truth
    bins = count_bins(len(left))
    edges = cover(left, bins)
    both = cover(np.concatenate([truth, value]), bins)
    cells, _, _ = np.histogram2d(_within(truth, both), _within(value, both), bins=(both, both))
    return {
        "mean": float(left.mean()),
        "deviation": float(left.std()),
        "mae": float(np.abs(left).mean()),
        "rmse": float(np.sqrt(np.square(left).mean())),
        "histogram": {
            "edges": edges.tolist(),
            "rows": np.histogram(_within(left, edges), edges)[0].tolist(),
        },
        "cells": {"edges": both.tolist(), "rows": cells.astype(np.int64).tolist()},
    }


def count_bins(rows: int) -> int:
    """Choose how many cells are worth drawing.

    >>> [count_bins(n) for n in (1, 100, 100_000)]
    [5, 10, 40]
    """
    return int(np.clip(np.ceil(np.sqrt(rows)), 5, MOST_BINS))


def cover(values: FloatArray, bins: int) -> FloatArray:
    """Lay edges over all but the outer values, [bins + 1]."""
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # all alike: a width to draw
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    return np.linspace(low, high, bins + 1)


def _within(values: FloatArray, edges: FloatArray) -> FloatArray:
    return np.clip(values, edges[0], edges[-1])
