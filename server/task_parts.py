"""The trunk's parts that belong to one task: only clients that hold the task have a say in them.

A client that lacks a task returns the task's parts as it received them. Its copies are replaced
before trunks are combined: whatever rule combines them, they then say nothing of their own.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.sharing import task_of
from common.wire import FloatArray

Index = NDArray[np.int64]


class TaskParts:
    """Where single tasks' parts lie in a flat trunk.

    Under algorithm 'whole-model' heads are sent as well; there every client holds every task, and
    heads are no parts in this sense.

    Args:
        shapes: parameter name -> shape, in the trunk's order.
        holds: whether a client, by name, holds a task.

    Attributes:
        columns: task -> its columns; tasks without parts are absent.
        names: task -> its parameters.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], holds: Callable[[str, str], bool]
    ) -> None:
        self.holds = holds
        self.names: dict[str, list[str]] = {}
        places: dict[str, list[Index]] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + int(np.prod(shape))
            task = task_of(name) if name.startswith("trunk.") else None
            if task is not None:
                self.names.setdefault(task, []).append(name)
                places.setdefault(task, []).append(np.arange(start, stop))
            start = stop
        self.columns = {task: np.concatenate(parts) for task, parts in places.items()}

    def stand_in(
        self, rows: FloatArray, weights: NDArray[np.int64], clients: Sequence[str]
    ) -> tuple[FloatArray, list[str]]:
        """Replace the parts of a task, at clients that lack it, by the mean of those that hold it.

        So a weighted mean of all rows is, in these columns, that of the holders' rows.

        Args:
            rows: [K, Q], trunks; not changed.
            weights: [K], each client's weight in the mean; 0 for one that is left out.
            clients: their K names.

        Returns:
            The rows, and the parameters of tasks that nobody among them holds: those are to stay as
            they were before the round.
        """
        if self.columns:
            rows = rows.copy()
        unheld: list[str] = []
        for task, columns in self.columns.items():
            held = np.array([self.holds(name, task) for name in clients])
            shares = weights * held
            if not shares.any():
                unheld += self.names[task]
            elif not held.all():
                heard = shares > 0  # not the others, whose rows may hold NaN: 0 times NaN is NaN
                part = (shares[heard] / shares.sum()).astype(np.float32)
                rows[np.ix_(~held, columns)] = part @ rows[np.ix_(heard, columns)]
        return rows, unheld
