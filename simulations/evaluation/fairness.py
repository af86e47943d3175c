"""How evenly a federation serves its clients and its tasks."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # it needs PyTorch, which the report does not
    from simulations.evaluation.answers import TaskRows


def spread_over_clients(
    figures: Mapping[str, float], rows: Mapping[str, int], *, higher_is_better: bool
) -> dict[str, Any]:
    """Describe one task's figure over clients, each counted once.

    Args:
        figures: client -> its figure; NaN where it has none, such as the AUROC of one class.
        rows: client -> its labelled rows.
        higher_is_better: direction of the figure.

    Returns:
        "clients", name -> "figure" and "rows", from worst to best, without figure last; over those
        with one "counted", "mean", "deviation", "worst", "p10", "median", "p90", "best", and
        "worst-decile": the mean of the worst tenth, at least one client. None where nobody has one.
    """
    sign = 1 if higher_is_better else -1
    known = {name: value for name, value in figures.items() if math.isfinite(value)}
    order = sorted(known, key=lambda name: sign * known[name])
    names = [*order, *(name for name in figures if name not in known)]
    listed = {n: {"figure": known.get(n), "rows": rows[n]} for n in names}
    values = np.array([known[name] for name in order])
    keys = ("mean", "deviation", "worst", "p10", "median", "p90", "best", "worst-decile")
    if not len(values):
        return {"counted": 0, **dict.fromkeys(keys), "clients": listed}
    low, middle, high = np.percentile(values, [10, 50, 90])
    worst = values[: math.ceil(len(values) / 10)].mean()
    ends = (values.mean(), values.std(), values[0], low, middle, high, values[-1], worst)
    told = {key: float(value) for key, value in zip(keys, ends, strict=True)}
    return {"counted": len(values), **told, "clients": listed}


def measure_skill(kind: str, rows: "TaskRows") -> float:
    """Measure what a task's answers are worth beyond a guess, on one scale for all kinds.

    ``1 - error / error of a guess``: 1 is perfect, 0 no better than always the commonest class or
    the mean of these rows. The error is the share of wrong decisions, or the mean squared residual;
    of several labels or outputs, the mean. NaN where a guess makes no error, such as for one class.

    >>> from simulations.evaluation.answers import TaskRows
    >>> truth, said = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    >>> measure_skill("binary", TaskRows(truth, said, None, np.ones(4, bool)))
    0.0
    """
    truth = rows.truth.reshape(len(rows), -1)
    value = rows.value.reshape(len(rows), -1)
    if kind == "regression":
        errors = np.square(value - truth).mean(0)
        guesses = truth.var(0)
    else:
        errors = (value != truth).mean(0)
        commonest = [np.unique(column, return_counts=True)[1].max() for column in truth.T]
        guesses = 1 - np.array(commonest) / len(rows)
    if not (guesses > 0).all():
        return math.nan
    return float((1 - errors / guesses).mean())
