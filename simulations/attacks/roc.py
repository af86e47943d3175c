"""How well scores tell members from others: ROC, AUC and rates, each with its interval.

Rows of members are positives. Intervals take the rows as drawn independently of one another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from simulations.attacks.intervals import auc_with_interval

CONFIDENCE = 0.95
LOW_RATES = (0.001, 0.01, 0.1)  # false-positive rates at which the true-positive rate is told

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Roc:
    """A curve, from (0, 0) to (1, 1).

    Attributes:
        false_positives: [N] rising, shares of non-members that a threshold takes for members.
        true_positives: [N] rising, shares of members that it takes for members.
    """

    false_positives: FloatArray
    true_positives: FloatArray


def trace_roc(members: FloatArray, others: FloatArray) -> Roc:
    """Trace the curve of all thresholds; scores that are equal fall together.

    Args:
        members: [M] scores, higher where membership is likelier.
        others: [N] scores.

    Raises:
        ConfigError: there are no members, or no others.

    >>> curve = trace_roc(np.array([3.0, 1.0]), np.array([2.0, 0.0]))
    >>> curve.false_positives.tolist(), curve.true_positives.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    require_both(members, others)
    cuts = np.unique(np.concatenate([members, others]))[::-1]
    taken = [
        np.searchsorted(np.sort(-scores), -cuts, side="right") / len(scores)
        for scores in (others, members)
    ]
    return Roc(*(np.concatenate([[0.0], share]) for share in taken))


def require_both(members: FloatArray, others: FloatArray) -> None:
    """Refuse scores of one kind alone, or that are no numbers.

    Raises:
        ConfigError: they are.
    """
    if not len(members) or not len(others):
        raise ConfigError(
            "an attack must be tried on members and on rows that were held out, got "
            f"{len(members)} members and {len(others)} others; set data.test or data.validation"
        )
    if np.isnan(members).any() or np.isnan(others).any():
        raise ConfigError("scores must be numbers, got NaN; the attacked model may have diverged")


def clopper_pearson(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Bound a share from both sides (Clopper & Pearson, Biometrika 1934).

    >>> [round(x, 4) for x in clopper_pearson(0, 10)]
    [0.0, 0.3085]
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def rate_at(members: FloatArray, others: FloatArray, false_rate: float) -> dict[str, float]:
    """Find the true-positive rate where at most a share of the others is taken for members.

    Args:
        members: [M] scores.
        others: [N] scores.
        false_rate: that share; 0.001 of fewer than 1000 others allows none.

    Returns:
        "tpr" with its ends "low" and "high" (Clopper-Pearson, for the threshold as it is), and
        "fpr", the share that it comes to.
    """
    require_both(members, others)
    allowed = math.floor(false_rate * len(others) + 1e-9)
    falling = np.sort(others)[::-1]
    threshold = falling[allowed] if allowed < len(others) else -np.inf
    hits, false = int((members > threshold).sum()), int((others > threshold).sum())
    low, high = clopper_pearson(hits, len(members))
    return {"tpr": hits / len(members), "low": low, "high": high, "fpr": false / len(others)}


def summarise(members: FloatArray, others: FloatArray) -> dict[str, Any]:
    """Put an attack's figures together, for machines."""
    require_both(members, others)
    truths = np.arange(len(members) + len(others)) < len(members)
    found = auc_with_interval(np.concatenate([members, others]), truths)
    return {
        "members": len(members),
        "others": len(others),
        "auc": {end: found[end] for end in ("value", "low", "high")},
        "tpr-at-fpr": {f"{rate:g}": rate_at(members, others, rate) for rate in LOW_RATES},
    }


def thin_curve(curve: Roc, points: int = 400) -> tuple[Sequence[float], Sequence[float]]:
    """Pick points of a curve for a file or a picture; steps at low rates are all kept."""
    count = len(curve.false_positives)
    if count <= points:
        kept = np.arange(count)
    else:
        even = np.linspace(0, count - 1, points // 2)
        early = np.geomspace(1, count - 1, points // 2)
        kept = np.unique(np.concatenate([even, early, [0, count - 1]]).astype(int))
    return curve.false_positives[kept].tolist(), curve.true_positives[kept].tolist()
