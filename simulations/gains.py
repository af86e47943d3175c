"""What contenders gain: test figures of one seed, Delta-m, and their spread over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.experiment import Experiment
from common.metrics import METRICS

YARDSTICK = "single-task local"  # the baseline that Delta-m is relative to
READ_AT = (
    "Run and yardsticks are read on test rows at their best rounds by validation rows, so figures "
    "may differ from the last trunk's."
)

TaskFigures = dict[str, float]  # task -> its metric on test rows
Spread = dict[str, Any]  # mean, deviation, and each seed's value


def task_metrics(experiment: Experiment, figures: Mapping[str, Any]) -> TaskFigures:
    """Take every task's metric out of the figures of one split; NaN where there is none."""
    tasks = figures.get("tasks", {})
    return {
        name: tasks[name][task.metric_name] if name in tasks else math.nan
        for name, task in experiment.tasks.items()
    }


def delta_m(experiment: Experiment, figures: TaskFigures, yardstick: TaskFigures) -> float:
    """Average the relative gain per task over single-task training, in percent.

    ``Delta_m = 100 / T * sum_t (-1)^{l_t} (M_t - S_t) / |S_t|`` with ``l_t = 1`` where lower is
    better (Maninis et al., "Attentive single-tasking of multiple tasks", CVPR 2019, eq. 4). Shaky
    where a yardstick S_t is near 0, as an R2 may be.
    """
    gains = [
        relative_gain(task.metric_name, figures[name], yardstick[name])
        for name, task in experiment.tasks.items()
    ]
    return sum(gains) / len(gains)


def relative_gain(metric: str, figure: float, base: float) -> float:
    """Compute one task's gain in percent of its yardstick, above 0 where it is better.

    One term of Delta-m, see `delta_m`; NaN where the yardstick is 0.

    >>> relative_gain("accuracy", 0.75, 0.5), relative_gain("rmse", 3.0, 2.0)
    (50.0, -50.0)
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    return 100 * sign * (figure - base) / abs(base) if base else math.nan


def summarise(
    experiment: Experiment,
    rows: Sequence[TaskFigures],
    yardsticks: Sequence[TaskFigures] | None = None,
) -> dict[str, Any]:
    """Summarise one contender over seeds: each task's metric, and Delta-m.

    Args:
        experiment: names the tasks and their metrics.
        rows: the contender's figures, a seed each.
        yardsticks: those of single-task training; without them there is no Delta-m.
    """
    summary = {"tasks": {task: spread([row[task] for row in rows]) for task in experiment.tasks}}
    if yardsticks is None:
        return summary
    gains = [delta_m(experiment, r, y) for r, y in zip(rows, yardsticks, strict=True)]
    return {**summary, "delta-m": spread(gains)}


def spread(values: Sequence[float]) -> Spread:
    """Compute mean and sample standard deviation over seeds; 0 for one seed.

    NaN stays NaN: a contender that diverged under one seed has no mean.

    >>> spread([1.0, 3.0])["mean"], round(spread([1.0, 3.0])["deviation"], 4)
    (2.0, 1.4142)
    """
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation, "seeds": list(values)}
