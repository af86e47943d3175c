"""Decisions and probabilities held against the truth: confusion, ROC, precision, calibration.

Areas and errors are those of all rows. Curves of many points are thinned for files and pages: of
all thresholds, evenly spaced ones are kept, the first and the last among them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.attacks.roc import trace_roc

MOST_POINTS = 200  # of a curve
BINS = 10  # of confidence, equally wide

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def count_decisions(truth: IntArray, decided: IntArray, classes: int) -> IntArray:
    """Count how rows of each class were decided: [classes, classes], a row per true class.

    >>> count_decisions(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (truth, decided), 1)
    return counts


def trace_curves(truth: NDArray[np.bool_], score: FloatArray) -> dict[str, Any]:
    """Trace ROC and precision-recall curves of one class against the others.

    Args:
        truth: [N], whether a row is of the class.
        score: [N], the probability that the model gives to it.

    Returns:
        "positives", "negatives"; "roc" with "fpr", "tpr" and "auc"; "precision-recall" with
        "recall", "precision" and "average-precision". The curves are None where all rows are of one
        kind, or there are none.
    """
    positives, negatives = score[truth], score[~truth]
    found: dict[str, Any] = {"positives": len(positives), "negatives": len(negatives)}
    if not len(positives) or not len(negatives):
        return {**found, "roc": None, "precision-recall": None}
    roc = trace_roc(positives, negatives)
    fpr, tpr = roc.false_positives, roc.true_positives
    kept = spread_places(len(fpr))
    area = float((np.diff(fpr) * (tpr[1:] + tpr[:-1])).sum() / 2)
    found["roc"] = {"auc": area, "fpr": fpr[kept].tolist(), "tpr": tpr[kept].tolist()}
    hits, taken = tpr * len(positives), tpr * len(positives) + fpr * len(negatives)
    # Where nothing is taken for the class, precision counts as 1: the curve's end by convention.
    precision = np.concatenate([[1.0], hits[1:] / taken[1:]])
    found["precision-recall"] = {
        "average-precision": float((np.diff(tpr) * precision[1:]).sum()),
        "recall": tpr[kept].tolist(),
        "precision": precision[kept].tolist(),
    }
    return found


def spread_places(count: int, most: int = MOST_POINTS) -> IntArray:
    """Choose which of many points to keep.

    >>> spread_places(3).tolist(), len(spread_places(10_000)), spread_places(10_000)[-1].item()
    ([0, 1, 2], 200, 9999)
    """
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def calibrate(confidence: FloatArray, right: NDArray[np.bool_]) -> dict[str, Any]:
    """Hold confidence against how often it is right, in bins of equal width.

    Expected calibration error (Guo et al., On calibration of modern neural networks, ICML 2017, eq.
    3): ``sum_b n_b / N * |right_b - confidence_b|``, both means over the bin's rows.

    Args:
        confidence: [N] from 0 to 1.
        right: [N], whether what is told with this confidence is so.

    Returns:
        "ece", None without rows, and "bins", those that hold rows: "low", "high", "rows",
        "confidence", "right".
    """
    edges = np.linspace(0, 1, BINS + 1)
    place = np.searchsorted(edges[1:-1], confidence)
    rows = np.bincount(place, minlength=BINS)
    told = np.bincount(place, confidence, BINS)
    was = np.bincount(place, right.astype(np.float64), BINS)
    bins = [
        {
            "low": float(edges[b]),
            "high": float(edges[b + 1]),
            "rows": int(rows[b]),
            "confidence": float(told[b] / rows[b]),
            "right": float(was[b] / rows[b]),
        }
        for b in np.flatnonzero(rows)
    ]
    ece = float(np.abs(was - told).sum() / len(right)) if len(right) else None
    return {"ece": ece, "bins": bins}
