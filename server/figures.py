"""From sums to figures: clients' sums are added and divided once, here."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from common.experiment import Experiment
from common.metrics import METRICS, Sums
from common.sums_form import EPOCHS
from common.weighting.balance import FIGURES
from server.sums import SumTable

Figures = dict[str, Any]  # as it stands in metrics.jsonl and results.json
QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def task_figures(metric: str, numbers: Mapping[str, Sums]) -> Figures:
    """Divide one task's sums: mean loss, metric, labelled rows."""
    loss, rows = numbers["loss"]
    figures: Figures = {"loss": loss / rows, "examples": int(rows)}
    if metric in numbers:
        figures[metric] = METRICS[metric].figure(numbers[metric])
    for name in (*FIGURES, EPOCHS):  # of loss weighting, means over steps; of clients that stop
        if name in numbers:
            total, steps = numbers[name]
            figures[name] = total / steps if steps else float("nan")
    return figures


def mean_figures(sums: SumTable, split: str, name: str) -> dict[str, float]:
    """Divide the sums of one name, a [sum, count] each: task -> mean, of tasks that have any."""
    means = {}
    for task in sums.numbers.get(split, {}):
        numbers = sums.task(split, task).get(name)
        if numbers is not None and (count := float(numbers[:, 1].sum())) > 0:
            means[task] = float(numbers[:, 0].sum()) / count
    return means


def split_figures(
    experiment: Experiment, sums: SumTable, split: str, weights: Mapping[str, float]
) -> Figures:
    """Compute the federation's figures on one split, and their spread over clients.

    Args:
        experiment: names the tasks and their metrics.
        sums: what the clients reported.
        split: "train", "validation" or "test".
        weights: task name -> w_t.

    Returns:
        ``{"loss": L, "tasks": {task: {"loss", metric, "examples", "spread"}}}`` with
        ``L = sum_t w_t * L_t`` over the tasks that any client reported; {} where none did. Where
        the sum over clients alone is known, nobody knows a spread.
    """
    tasks: Figures = {}
    for task, settings in experiment.tasks.items():
        numbers = sums.task(split, task)
        if not numbers:
            continue
        metric = settings.metric_name
        total = {name: values.sum(0).tolist() for name, values in numbers.items()}
        tasks[task] = task_figures(metric, total)
        if metric in numbers and not sums.is_total:
            figure = METRICS[metric].figure
            tasks[task]["spread"] = spread(figure(row) for row in numbers[metric].tolist())
    if not tasks:
        return {}
    return {"loss": sum(weights[t] * f["loss"] for t, f in tasks.items()), "tasks": tasks}


def spread(figures: Iterable[float]) -> Figures:
    """Summarise one figure over clients, those without a figure left out.

    >>> spread([1.0, 3.0, float("nan")])["median"]
    2.0
    """
    values = np.array([f for f in figures if np.isfinite(f)])
    if not len(values):
        return {"clients": 0}
    levels = np.quantile(values, list(QUANTILES.values())).tolist()
    return {**dict(zip(QUANTILES, levels, strict=True)), "clients": len(values)}
