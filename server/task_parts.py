"""The parameters that belong to one task: only clients that hold the task have a say in them.

A client that lacks a task returns the task's parts as it received them. Its copies are replaced
before trunks are combined: whatever rule combines them, they then say nothing of their own.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.sharing import task_of
from common.wire import FloatArray

Index = NDArray[np.int64]


class TaskParts:
    """Where single tasks' parts lie in a flat trunk: the trunk's own, and heads that travel.

    Args:
        columns: parameter -> its columns, in the trunk's order.

    Attributes:
        columns: task -> its columns; tasks without parts are absent.
    """

    def __init__(self, columns: Mapping[str, slice]) -> None:
        places: dict[str, list[Index]] = {}
        for name, cut in columns.items():
            task = task_of(name)
            if task is not None:
                places.setdefault(task, []).append(np.arange(cut.start, cut.stop))
        self.columns = {task: np.concatenate(parts) for task, parts in places.items()}

    def stand_in(
        self,
        rows: FloatArray,
        before: FloatArray,
        weights: Mapping[str, NDArray[np.int64]],
        *,
        by_median: bool = False,
    ) -> tuple[FloatArray, Sequence[str]]:
        """Replace the parts of a task, at clients that lack it, by the mean of those that hold it.

        So a weighted mean of all rows is, in these columns, that of the holders' rows. Where nobody
        holds the task, all rows get what was sent.

        Args:
            rows: [K, Q], trunks; not changed.
            before: [Q] or [K, Q], what was sent.
            weights: task -> [K], each client's weight in the mean; 0 for one that lacks the task.
            by_median: let the holders' median stand in, which one of three cannot drag away.

        Returns:
            The rows, and the tasks that nobody holds: their parts are to stay as they were.
        """
        unheld: list[str] = []
        if all(weights[task].all() for task in self.columns):
            return rows, unheld
        rows = rows.copy()
        for task, columns in self.columns.items():
            held = weights[task] > 0
            if not held.any():
                unheld.append(task)
                rows[:, columns] = before[..., columns]
            elif not held.all():
                theirs = rows[np.ix_(held, columns)]
                part = (weights[task][held] / weights[task].sum()).astype(np.float32)
                stand_in = np.median(theirs, axis=0) if by_median else part @ theirs
                rows[np.ix_(~held, columns)] = stand_in
        return rows, unheld
