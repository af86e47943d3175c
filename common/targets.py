"""A client's labels for one task, read from its target columns by the task's kind.

An empty cell is a missing label; a client whose file lacks a task's column, or holds no label in
it, does not hold the task.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cells import FloatArray, count_rows, list_names, read_names, read_numbers
from common.errors import DataError
from common.experiment import Experiment
from common.sections.rows import WITH_CLASSES, Task
from common.tables import ClientTable

YES_NO = {"0": 0, "1": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class Target:
    """The labels of one task.

    Attributes:
        values: int64 [N] codes of classes (multiclass, binary), or float64 [N, outputs] after
            `task.transform`, not standardised. 0 where there is no label.
        labelled: bool [N].
    """

    values: NDArray[Any]
    labelled: NDArray[np.bool_]


def read_labels(table: ClientTable, experiment: Experiment, name: str) -> Target | None:
    """Read the labels of one task in some rows; None where the client lacks its columns.

    Raises:
        DataError: a label is not what the task's kind takes, or a row has some but not all columns
            of a task with several.
    """
    task, columns = experiment.tasks[name], experiment.targets(name)
    missing = [column for column in columns if column not in table.columns]
    if len(missing) == len(columns):
        return None
    if missing:
        raise DataError(
            f"client '{table.name}', task '{name}' needs {len(columns)} target columns, lacks "
            f"{list_names(missing)}; add them, or remove all for a client without the task"
        )
    if task.kind in WITH_CLASSES:
        return _read_classes(table, task, name, columns[0])
    return _read_vectors(table, task, name, columns)


def class_names(task: Task, codes: NDArray[np.int64]) -> list[str]:
    """Name classes by their codes."""
    named = task.classes if isinstance(task.classes, tuple) else None
    return [named[code] if named else str(code) for code in codes]


def _read_classes(table: ClientTable, task: Task, name: str, column: str) -> Target:
    where = f"client '{table.name}', column '{column}' (task '{name}')"
    cells = table.columns[column]
    if isinstance(task.classes, tuple):
        return _code_names(cells, {n: code for code, n in enumerate(task.classes)}, where)
    if task.kind == "binary" and cells.dtype == object:
        return _code_names(cells, YES_NO, where)
    numbers = read_numbers(cells, where, "correct the file, or name the classes in `classes`")
    labelled = ~np.isnan(numbers)
    codes = np.where(labelled, numbers, 0.0)
    if odd := int((codes != np.floor(codes)).sum()):
        raise DataError(
            f"{where} must hold whole numbers from 0, got others in {count_rows(odd)}; correct "
            "them, name the classes in `classes`, or make it a regression"
        )
    count = task.class_count or 2
    if beyond := int(((codes < 0) | (codes >= count)).sum()):
        raise DataError(
            f"{where} must hold classes from 0 to {count - 1}, got others in {count_rows(beyond)}; "
            "correct the cells, or `classes`"
        )
    return Target(codes.astype(np.int64), labelled)


def _code_names(cells: NDArray[Any], codes: dict[str, int], where: str) -> Target:
    names = read_names(cells, where)
    if codes is YES_NO:
        names = np.array([n if n is None else n.lower() for n in names], dtype=object)
    labelled = np.array([n is not None for n in names], dtype=bool)
    if unknown := sum(n is not None and n not in codes for n in names):
        known = "0, 1, true or false" if codes is YES_NO else f"one of {list_names(list(codes))}"
        raise DataError(
            f"{where} must be {known}, got others in {count_rows(unknown)}; correct the cells, or "
            "name all classes in `classes`"
        )
    return Target(np.array([codes.get(n, 0) for n in names], dtype=np.int64), labelled)


def _read_vectors(table: ClientTable, task: Task, name: str, columns: tuple[str, ...]) -> Target:
    where = f"client '{table.name}', task '{name}'"
    values = np.stack(
        [
            read_numbers(
                table.columns[c],
                f"client '{table.name}', column '{c}' (task '{name}')",
                f"correct the file, or name another column in tasks.{name}.target",
            )
            for c in columns
        ],
        axis=1,
    )
    present: NDArray[np.bool_] = ~np.isnan(values)
    labelled: NDArray[np.bool_] = np.asarray(present.all(axis=1))
    if partial := int((present.any(axis=1) & ~labelled).sum()):
        raise DataError(
            f"{where} has {len(columns)} target columns, and {count_rows(partial)} with some of "
            "them empty; fill or empty all of them, or make them tasks of their own"
        )
    values = np.where(labelled[:, None], values, 0.0)
    if task.kind == "multilabel" and not np.isin(values, (0.0, 1.0)).all():
        wrong = int((~np.isin(values, (0.0, 1.0))).any(axis=1).sum())
        raise DataError(f"{where}: labels must be 0 or 1, got others in {count_rows(wrong)}")
    return Target(_transform(values, task, where), labelled)


def _transform(values: FloatArray, task: Task, where: str) -> FloatArray:
    if task.transform == "none":
        return values
    if low := int((values <= -1.0).any(axis=1).sum()):
        raise DataError(
            f"{where}: transform 'log1p' takes values above -1, got others in {count_rows(low)}; "
            "correct them, or set transform to 'none'"
        )
    return np.log1p(values)
