"""The evaluation of a finished run, as figures for machines; the page draws them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.prediction import describe_model, name_outputs
from common.errors import DataError
from common.experiment import Experiment
from common.metrics import METRICS, Sums, add_sums
from common.targets import class_names
from simulations.evaluation.answers import (
    ClientAnswers,
    EndedRun,
    TaskRows,
    answer_all,
    open_ended,
)
from simulations.evaluation.curves import calibrate, count_decisions, trace_curves
from simulations.evaluation.fairness import measure_skill, spread_over_clients
from simulations.evaluation.residuals import describe_residuals
from simulations.formats import format_count
from simulations.run_record import task_figures

Figures = dict[str, Any]


def evaluate(folder: Path, split: str = "test", data: str | None = None) -> Figures:
    """Evaluate a run's final trunk with its clients' own heads, on their rows of a split.

    Args:
        folder: of a simulation whose run ended.
        split: test or validation.
        data: where raw data is, if not where the experiment says.

    Returns:
        What evaluation.json holds; figures that do not exist are NaN or None.

    Raises:
        ConfigError: the run, or what is asked for, cannot serve.
        CheckpointError: the run's folder cannot be read, or the run has not ended.
        DataError: the data is not the run's, or no client has rows of the split.
    """
    ended = open_ended(folder, data)
    experiment = ended.kept.experiment
    clients = list(answer_all(ended, split))
    if not any(client.tasks for client in clients):
        raise DataError(
            f"--split {split} must have labelled rows, and no client has any; choose the other "
            "split, or a run that held out rows"
        )
    tasks = {name: evaluate_task(ended, clients, name, split) for name in experiment.tasks}
    return {
        "run": ended.kept.run,
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "round": ended.kept.round,
        "split": split,
        "clients": len(clients),
        "rows": sum(client.rows for client in clients),
        "notes": list(_notes(ended, clients, tasks, split)),
        "tasks": tasks,
    }


def evaluate_task(
    ended: EndedRun, clients: Sequence[ClientAnswers], name: str, split: str
) -> Figures:
    """Put together the figures of one task; most are missing where nobody has a label."""
    experiment = ended.kept.experiment
    task = experiment.tasks[name]
    holders = [client for client in clients if name in client.tasks]
    told = task_figures(ended.record.final, split, name).get(task.metric_name)
    sums = {client.name: client.sums[name] for client in holders}
    rows = {client.name: len(client.tasks[name]) for client in holders}
    rule = METRICS[task.metric_name]
    found: Figures = {
        "kind": task.kind,
        "metric": task.metric_name,
        "figure": rule.figure(_add(list(sums.values()))) if sums else None,
        "results": told,
        "rows": sum(rows.values()),
        "fairness": spread_over_clients(
            {client: rule.figure(own) for client, own in sums.items()},
            rows,
            higher_is_better=rule.higher_is_better,
        ),
    }
    if not holders:
        return found
    joined = TaskRows.join([client.tasks[name] for client in holders])
    answered = joined.answered()
    found["unanswered"] = len(joined) - len(answered)
    # Of rows without an answer there is no residual; decisions are taken all the same.
    scored = answered if task.kind == "regression" else joined
    found["skill"] = measure_skill(task.kind, scored) if len(scored) else math.nan
    describe = describe_values if task.kind == "regression" else describe_classes
    return {**found, **describe(experiment, name, joined, answered)}


def describe_values(
    experiment: Experiment, name: str, joined: TaskRows, answered: TaskRows
) -> Figures:
    """Describe the residuals of every output of a regression."""
    if not len(answered):
        return {"residuals": []}
    return {
        "residuals": [
            {"name": output, **describe_residuals(answered.truth[:, k], answered.value[:, k])}
            for k, output in enumerate(name_outputs(experiment, name))
        ]
    }


def describe_classes(
    experiment: Experiment, name: str, joined: TaskRows, answered: TaskRows
) -> Figures:
    """Describe decisions, curves and calibration of a task with classes or labels."""
    task = experiment.tasks[name]
    is_multilabel = task.kind == "multilabel"
    probability = answered.probability
    if probability is None:  # a task with classes has them
        raise TypeError(f"task '{name}' has no probabilities")
    if task.kind == "multiclass":
        classes = class_names(task, np.arange(probability.shape[1]))
        sides = [(c, answered.truth == k, probability[:, k]) for k, c in enumerate(classes)]
        # Guo et al.: how sure the model is of what it decides.
        confidence, right = probability.max(1, initial=0), answered.truth == answered.value
    else:
        labels = name_outputs(experiment, name) if is_multilabel else [name]
        classes = ["0", "1"] if is_multilabel else class_names(task, np.arange(2))
        truths = _columns(answered.truth) == 1
        columns = _columns(probability)
        sides = [(label, truths[:, k], columns[:, k]) for k, label in enumerate(labels)]
        confidence, right = columns.ravel(), truths.ravel()
    return {
        "confusion": list(_confusions(joined, [side[0] for side in sides], classes, is_multilabel)),
        "curves": [{"name": n, **trace_curves(truth, score)} for n, truth, score in sides],
        "calibration": calibrate(confidence, right),
    }


def _confusions(
    rows: TaskRows, labels: Sequence[str], classes: list[str], is_multilabel: bool
) -> Iterator[Figures]:
    """Count the decisions of all rows: one matrix, or one for each label."""
    truth, value = _columns(rows.truth), _columns(rows.value)
    for k in range(truth.shape[1]):
        counts = count_decisions(truth[:, k], value[:, k], len(classes))
        name = labels[k] if is_multilabel else ""
        yield {"name": name, "classes": classes, "rows": counts.tolist()}


def _columns(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, None] if values.ndim == 1 else values


def _add(sums: list[Sums]) -> Sums:
    total = sums[0]
    for own in sums[1:]:
        total = add_sums(total, own)
    return total


def _notes(
    ended: EndedRun, clients: Sequence[ClientAnswers], tasks: Mapping[str, Figures], split: str
) -> Iterator[str]:
    """Say what the figures leave out, and what they mean, in a sentence each."""
    experiment = ended.kept.experiment
    yield from (f"{text[0].upper()}{text[1:]}." for text in describe_model(experiment))
    if any(experiment.privacy.levels):
        yield (
            "These figures come from the clients' rows without noise, and the run's epsilon does "
            "not cover them: keep them where the rows are."
        )
    if empty := sum(not client.tasks for client in clients):
        yield f"{format_count(empty, 'client')} without labelled {split} rows, in no figure."
    if new := len(ended.clients - set(ended.kept.own)):
        yield (
            f"{format_count(new, 'client')} took part in no round: here and in results.json they "
            "answer with heads as they were initialised."
        )
    kept = ended.kept
    if kept.groups:
        left = len(ended.clients - set(kept.groups))
        yield (
            f"{kept.group_count} groups of clients, each with a trunk of its own"
            + (f"; {format_count(left, 'client')} of none, with the mean of all." if left else ".")
        )
    for name, found in tasks.items():
        if experiment.tasks[name].transform != "none":
            yield (
                f"Task {name}: residuals and skill are in the target's own unit, "
                f"{found['metric']} is in that of transform '{experiment.tasks[name].transform}'."
            )
        if not found["rows"]:
            yield f"Task {name}: nobody has labelled {split} rows."
        elif count := found["unanswered"]:
            yield (
                f"Task {name}: the model's answer to {format_count(count, 'row')} is no number: "
                "these are left out of curves, calibration and residuals."
            )
        if differs(experiment, found):
            yield (
                f"Task {name}: {found['metric']} is {found['figure']:.4g} here and "
                f"{found['results']:.4g} in results.json: other models or rows, as said above, or "
                "the data's values have changed."
            )


def differs(experiment: Experiment, found: Figures) -> bool:
    """Whether a figure is not the run's own by more than rounding; noised ones never agree."""
    here, told = found["figure"], found["results"]
    if here is None or told is None or experiment.privacy.sums_regime == "noised":
        return False
    return not math.isclose(here, told, rel_tol=1e-3, abs_tol=1e-6)
