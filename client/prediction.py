"""Predictions of a client's kept model for new rows, as columns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.algorithms.algorithm import LocalAlgorithm, open_algorithm
from client.answers import Answer, average_answers, read_output
from client.kept_model import KeptModel
from common.algorithms import ALGORITHMS
from common.cells import count_rows, list_names
from common.encoding import NewRows, encode_rows, target_scales
from common.errors import ConfigError
from common.experiment import Experiment
from common.sections.rows import Task
from common.tables import ClientTable
from common.targets import class_names

ROWS = 4096  # computed at a time
PREFIX = "predicted."  # begins the names of columns: a task is mostly called as its target is


@dataclass(frozen=True)
class Predictions:
    """What a model says about N rows.

    Attributes:
        columns: column name -> [M], of the rows that can be used: classes (objects of str where the
            experiment names them, else int64), probabilities and values.
        usable: bool [N], M of which are true.
        notes: one line each on what is left out or uncertain; names and counts only.
    """

    columns: dict[str, NDArray[Any]]
    usable: NDArray[np.bool_]
    notes: tuple[str, ...]


def predict(
    kept: KeptModel, table: ClientTable, device: torch.device, prefix: str = PREFIX
) -> Predictions:
    """Predict all tasks that the client holds; see `predict_together`."""
    return predict_together([kept], table, device, prefix)


def predict_together(
    models: Sequence[KeptModel], table: ClientTable, device: torch.device, prefix: str = PREFIX
) -> Predictions:
    """Predict by the average of models, all tasks that every one of them answers.

    Args:
        models: one or more, of the same tasks.
        table: rows with the columns of the experiment's inputs; others are not read.
        device: where to compute.
        prefix: begins the names of the columns.

    Raises:
        ConfigError: a column of the table has a name that a prediction needs, or the models were
            trained for other tasks.
        DataError: the rows cannot be encoded; see `common.encoding.encode_rows`.
        CheckpointError: the model is not complete.
    """
    _require_same_tasks(models)
    experiment = models[0].experiment
    rows = [encode_rows(table, m.experiment, m.agreement, m.fitted) for m in models]
    usable: NDArray[np.bool_] = np.logical_and.reduce([own.usable for own in rows])
    answers = [
        compute_answers(model, _keep(own, usable), device)
        for model, own in zip(models, rows, strict=True)
    ]
    named = [
        (prefix + name, column)
        for task in answers[0]
        if all(task in own for own in answers)
        for name, column in name_columns(
            experiment, task, average_answers(experiment.tasks[task], [a[task] for a in answers])
        )
    ]
    _check_names([name for name, _ in named], list(table.columns))
    notes = [note for m, own in zip(models, rows, strict=True) for note in _notes(m, own)]
    return Predictions(dict(named), usable, tuple(dict.fromkeys(notes)))


def _keep(rows: NewRows, usable: NDArray[np.bool_]) -> dict[str, Tensor]:
    """Keep the inputs of rows that all models can use, [N] bool; copies only where others go."""
    if (rows.usable == usable).all():
        return rows.inputs
    kept = torch.from_numpy(usable[rows.usable])
    return {name: x[kept] for name, x in rows.inputs.items()}


def _require_same_tasks(models: Sequence[KeptModel]) -> None:
    """Refuse to average answers to other questions.

    Raises:
        ConfigError: names the first task that differs.
    """
    first = models[0]
    for model in models[1:]:
        for name in dict.fromkeys([*first.experiment.tasks, *model.experiment.tasks]):
            one, other = (_question(m.experiment, name) for m in (first, model))
            if one != other:
                raise ConfigError(
                    f"models whose predictions are averaged must have the same tasks, got "
                    f"tasks.{name} {other} in run {model.run} and {one} in run {first.run}; give "
                    "runs that agree"
                )


def _question(experiment: Experiment, name: str) -> str:
    task = experiment.tasks.get(name)
    if task is None:
        return "absent"
    targets = list_names(experiment.targets(name))
    return f"({task.kind}, target {targets}, classes {task.classes}, transform {task.transform})"


def compute_answers(
    kept: KeptModel, inputs: dict[str, Tensor], device: torch.device
) -> dict[str, Answer]:
    """Compute the answers of all tasks that the client holds, some rows at a time."""
    model, scales = kept.build().to(device), target_scales(kept.fitted)
    count = len(next(iter(inputs.values())))
    parts: dict[str, list[Answer]] = {task: [] for task in kept.tasks}
    with torch.inference_mode():
        for start in range(0, max(count, 1), ROWS):
            some = {name: x[start : start + ROWS].to(device) for name, x in inputs.items()}
            outputs, _ = model(some, kept.tasks)
            for task, output in outputs.items():
                settings = kept.experiment.tasks[task]
                parts[task].append(read_output(settings, output, scales.get(task)))
    return {task: _join(some) for task, some in parts.items()}


def name_columns(
    experiment: Experiment, name: str, answer: Answer
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name the columns of one task's answers; [N] each."""
    task = experiment.tasks[name]
    value = answer.value.cpu().numpy()
    probability = None if answer.probability is None else answer.probability.cpu().numpy()
    if task.kind == "multiclass" and probability is not None:
        yield name, _classes(task, value)
        for code, known in enumerate(class_names(task, np.arange(probability.shape[1]))):
            yield f"{name}.probability.{known}", probability[:, code]
    elif task.kind == "binary" and probability is not None:
        yield name, _classes(task, value)
        yield f"{name}.probability", probability
    else:
        for place, output in enumerate(name_outputs(experiment, name)):
            yield output, value[:, place]
            if probability is not None:
                yield f"{output}.probability", probability[:, place]


def name_outputs(experiment: Experiment, task: str) -> list[str]:
    """Name the outputs of a regression or multilabel task: as the task, or by target columns."""
    targets = experiment.targets(task)
    alone = len(targets) == 1 and experiment.tasks[task].kind == "regression"
    return [task] if alone else [f"{task}.{column}" for column in targets]


def _classes(task: Task, codes: NDArray[np.int64]) -> NDArray[Any]:
    if not isinstance(task.classes, tuple):
        return codes
    return np.array(task.classes, dtype=object)[codes]


def _join(parts: Sequence[Answer]) -> Answer:
    values = torch.cat([part.value for part in parts])
    probabilities = [part.probability for part in parts if part.probability is not None]
    return Answer(values, torch.cat(probabilities) if probabilities else None)


def _check_names(names: Sequence[str], columns: Sequence[str]) -> None:
    taken = [name for name in names if name in columns]
    twice = sorted({name for name in names if names.count(name) > 1})
    if taken or twice:
        whose = "columns of the rows" if taken else "two predictions"
        raise ConfigError(
            f"--prefix must keep predictions apart from all other columns, got names that {whose} "
            f"have: {list_names(taken or twice)}; choose another --prefix, or rename the columns"
        )


def describe_gaps(kept: KeptModel) -> Iterator[str]:
    """Say in a line each what a model does not answer, or answers otherwise than was measured."""
    lacking = [task for task in kept.experiment.tasks if task not in kept.tasks]
    if lacking:
        yield (
            f"client '{kept.client}' has no head for task {list_names(lacking)}, or no labels to "
            "give it a unit by: it is left out"
        )
    yield from describe_model(kept.experiment)


def describe_model(experiment: Experiment) -> Iterator[str]:
    """Say in a line each in what the kept model is not the one that the run measured."""
    if experiment.evaluation.model == "personal":
        yield (
            "the run measured trunks after local epochs (evaluation.model 'personal'); here the "
            "trunk is as it was received"
        )
    if type(open_algorithm(experiment)).receive is not LocalAlgorithm.receive:
        yield (
            f"federation.algorithm '{experiment.federation.algorithm}' was measured as fitted "
            "to the last trunk on the client's rows; here the trunk is mixed as last learned"
        )


def describe_cover(kept: KeptModel) -> Iterator[str]:
    """Say that a private run's epsilon does not hold for a model with heads, where it does not."""
    privacy = kept.experiment.privacy
    if privacy.example_level is not None and privacy.example_level.covers == "model":
        return
    federation = kept.experiment.federation
    stay = ALGORITHMS[federation.algorithm].shares == "trunk" and federation.heads == "local"
    if any(privacy.levels) and stay:
        yield (
            "no noise was added to heads, which stayed with the client: the run's epsilon holds "
            "for its trunk, not for this model or what it says"
        )


def _notes(kept: KeptModel, rows: NewRows) -> Iterator[str]:
    yield from describe_gaps(kept)
    if dropped := int((~rows.usable).sum()):
        yield f"{count_rows(dropped)} with empty cells in the inputs: predictions are empty there"
    for (name, column), count in rows.unknown.items():
        yield (
            f"column '{column}' (inputs.{name}) has a category that training did not know in "
            f"{count_rows(count)}; it counts as none"
        )
