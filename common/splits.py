"""How a client divides its own rows into training, validation and test.

A split depends on `Experiment.data_seed`, the client's name and the number of its rows, and on no
cell but those of `data.split-column` or of the task to stratify by.
"""

import numpy as np
from numpy.typing import NDArray

from common.cells import list_names, read_names
from common.dataset import SPLITS
from common.errors import DataError
from common.experiment import Experiment
from common.sections.rows import Data
from common.seeding import numpy_generator
from common.tables import ClientTable

IndexArray = NDArray[np.int64]

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def split_rows(table: ClientTable, experiment: Experiment) -> dict[str, IndexArray]:
    """Divide a client's rows by `data.split`.

    Returns:
        "train", "validation", "test" -> row numbers, rising, or in the order of `data.split-column`
        where the split is ordered. Every row is in exactly one of them, except that a row whose
        split column is empty is in none.

    Raises:
        DataError: the split column or the column to stratify by is missing or cannot be used.
    """
    rule = {"random": _split_random, "ordered": _split_ordered, "column": _split_by_column}
    parts = rule[experiment.data.split](table, experiment)
    return dict(zip(SPLITS, parts, strict=True))


def part_sizes(rows: int, data: Data) -> tuple[int, int]:
    """Count the rows of validation and test: shares rounded half up, and one row left to train on.

    >>> part_sizes(10, Data(source="digits", validation=0.15, test=0.2))
    (2, 2)
    >>> part_sizes(2, Data(source="digits", validation=0.45, test=0.5))
    (0, 1)
    """
    test = min(int(rows * data.test + 0.5), max(rows - 1, 0))
    validation = min(int(rows * data.validation + 0.5), max(rows - 1 - test, 0))
    return validation, test


def _split_random(table: ClientTable, experiment: Experiment) -> tuple[IndexArray, ...]:
    rows = np.arange(len(table))
    validation, test = part_sizes(len(rows), experiment.data)
    rows, tested = _draw(rows, test, "test", table, experiment)
    rows, validated = _draw(rows, validation, "validation", table, experiment)
    return rows, validated, tested


def _split_ordered(table: ClientTable, experiment: Experiment) -> tuple[IndexArray, ...]:
    """Train on the first rows in the order of a column, test on the last; ties keep file order."""
    column = _split_column(table, experiment.data)
    if column.dtype == object:
        names = read_names(column, f"client '{table.name}', data.split-column")
        empty = sum(name is None for name in names)
        column = names.astype(str)  # dates spelt 2024-05-31 sort as dates
    else:
        empty = int(np.isnan(column.astype(np.float64)).sum())
    if empty:
        raise DataError(
            f"client '{table.name}', column '{experiment.data.split_column}' (data.split-column) "
            f"must order every row, got {empty} empty cells of {len(column)}"
        )
    order = np.argsort(column, kind="stable")
    validation, test = part_sizes(len(order), experiment.data)
    end = len(order) - test
    return order[: end - validation], order[end - validation : end], order[end:]


def _split_by_column(table: ClientTable, experiment: Experiment) -> tuple[IndexArray, ...]:
    """Follow a column of words; where it names no validation row, draw some from training."""
    column = _split_column(table, experiment.data)
    words = read_names(column, f"client '{table.name}', data.split-column")
    meant = np.array([SPLIT_WORDS.get(w.lower(), "") if w else None for w in words], dtype=object)
    if unknown := int((meant == "").sum()):
        raise DataError(
            f"client '{table.name}', column '{experiment.data.split_column}' (data.split-column) "
            f"must say train, validation or test, got others in {unknown} of {len(words)} rows; "
            "correct these cells, or name another column"
        )
    train, validation, test = (np.flatnonzero(meant == split) for split in SPLITS)
    if not len(validation):
        share = int(len(train) * experiment.data.validation + 0.5)
        count = min(share, max(len(train) - 1, 0))
        train, validation = _draw(train, count, "validation", table, experiment)
    return train, validation, test


def _split_column(table: ClientTable, data: Data) -> NDArray[np.generic]:
    if data.split_column not in table.columns:
        raise DataError(
            f"client '{table.name}' has no column '{data.split_column}', which data.split-column "
            f"names; its columns are {list_names(list(table.columns))}"
        )
    column: NDArray[np.generic] = table.columns[data.split_column]
    if column.ndim != 1:
        raise DataError(
            f"client '{table.name}', column '{data.split_column}' (data.split-column) must hold "
            f"one value a row, got arrays of {column.shape[1:]}"
        )
    return column


def _draw(
    rows: IndexArray, count: int, part: str, table: ClientTable, experiment: Experiment
) -> tuple[IndexArray, IndexArray]:
    """Draw `count` of these rows, seeded by the client's name: (the others, the drawn).

    Stratified: rows are sorted by class and every so-manieth is drawn, so that each class gives its
    share to within a row, and keeps one row wherever the count allows.
    """
    if not count:
        return rows, rows[:0]
    shuffled = numpy_generator(experiment.data_seed, "split", table.name, part).permutation(rows)
    if experiment.data.stratify:
        shuffled = _spread_classes(shuffled, count, table, experiment)
    return np.sort(shuffled[count:]), np.sort(shuffled[:count])


def _spread_classes(
    shuffled: IndexArray, count: int, table: ClientTable, experiment: Experiment
) -> IndexArray:
    """Reorder rows so that the first `count` hold the classes in share."""
    (column,) = experiment.targets(experiment.data.stratify)
    if column not in table.columns:  # the client does not hold this task
        return shuffled
    names = read_names(table.columns[column], f"client '{table.name}', column '{column}'")
    _, classes = np.unique(names[shuffled].astype(str), return_inverse=True)
    by_class = np.argsort(classes, kind="stable")
    first = np.diff(classes[by_class], prepend=-1) > 0  # one row of each class stays behind
    pool = by_class[~first] if (~first).sum() >= count else by_class
    drawn = pool[((np.arange(count) + 0.5) * len(pool) / count).astype(np.int64)]
    left = np.delete(np.arange(len(shuffled)), drawn)
    reordered: IndexArray = shuffled[np.concatenate([drawn, left])]
    return reordered
