"""What of an update is compared between clients, and a short sketch of it that is kept."""

from collections.abc import Iterator

import numpy as np

from common.architectures.table import SHARINGS
from common.experiment import Experiment
from common.seeding import numpy_generator
from common.sharing import is_statistic, task_of
from common.wire import FloatArray
from server.aggregation.rule import Columns

WIDTH = 1024  # of a sketch; products of unit vectors are off by about 1 / sqrt(WIDTH)


def common_part(rows: FloatArray, columns: Columns) -> FloatArray:
    """Cut rows to the columns that all tasks train: no single task's parts, no statistics.

    Args:
        rows: [n, Q].
        columns: parameter name -> its columns.
    """
    parts = common_columns(columns)
    if sum(place.stop - place.start for place in parts) == rows.shape[1]:
        return rows
    return np.concatenate([rows[:, :0], *(rows[:, place] for place in parts)], axis=1)


def common_columns(columns: Columns) -> list[slice]:
    """List the columns that all tasks train, parameter by parameter."""
    return [
        place
        for name, place in columns.items()
        if name.startswith("trunk.") and task_of(name) is None and not is_statistic(name)
    ]


def common_problems(experiment: Experiment, strategy: str) -> Iterator[str]:
    """Refuse a trunk that has no columns to compare clients by."""
    sharing = experiment.trunk.sharing
    if not SHARINGS[sharing].has_common_parts:
        yield (
            f"federation.strategy '{strategy}' compares updates of what all tasks share, and "
            f"trunk.sharing '{sharing}' has no such part; choose another of the two"
        )
    elif not experiment.trunk.has_layers:
        yield (
            f"federation.strategy '{strategy}' compares updates of what all tasks share, and a "
            "trunk without layers has no such part; give it a layer, or choose another strategy"
        )


def plain_parts(columns: Columns) -> list[slice]:
    """List the columns of running statistics, which are to be averaged whatever the rule.

    No loss pulls on them, and another combination could give a negative variance.
    """
    return [place for name, place in columns.items() if is_statistic(name)]


def directions(steps: FloatArray) -> FloatArray:
    """Give rows length 1; a row of zeros stays."""
    squares = np.einsum("kq,kq->k", steps, steps, dtype=np.float64)  # no copy in double precision
    units: FloatArray = steps / np.where(squares > 0, np.sqrt(squares), 1.0)[:, None].astype("f4")
    return units


class Sketcher:
    """Shortens rows so that their products are nearly kept (count sketch with equal buckets).

    Every column is added, with a random sign, to one of `WIDTH` sums (Charikar et al., "Finding
    frequent items in data streams", ICALP 2002; Weinberger et al., "Feature hashing for large scale
    multitask learning", ICML 2009). Rows that are short already are left alone.

    Args:
        size: columns of a row.
        seed: the run's; the same sums in every sitting.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        generator = numpy_generator(seed, "sketch", size)
        self._order = generator.permutation(size)
        self._signs = generator.choice(np.array([-1, 1], np.float32), size)

    @property
    def width(self) -> int:
        """Columns of a sketch."""
        return min(self.size, WIDTH)

    def shorten(self, rows: FloatArray) -> FloatArray:
        """Sketch rows, [n, size] -> [n, width]."""
        if self.size <= WIDTH:
            return rows
        padded = np.zeros((len(rows), -(-self.size // WIDTH) * WIDTH), np.float32)
        padded[:, : self.size] = rows[:, self._order] * self._signs
        sums: FloatArray = padded.reshape(len(rows), -1, WIDTH).sum(axis=1)
        return sums
