"""What of an update is compared between clients, and a short sketch of it that is kept."""

import numpy as np
from numpy.typing import NDArray

from common.seeding import numpy_generator
from common.sharing import is_statistic, task_of
from common.wire import FloatArray
from server.aggregation.rule import Columns

WIDTH = 1024  # of a sketch; products of unit vectors are off by about 1 / sqrt(WIDTH)


def common_columns(columns: Columns) -> NDArray[np.int64]:
    """List the columns that all tasks train: no single task's parts, no running statistics."""
    parts = [
        np.arange(place.start, place.stop)
        for name, place in columns.items()
        if name.startswith("trunk.") and task_of(name) is None and not is_statistic(name)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def directions(steps: FloatArray) -> FloatArray:
    """Give rows length 1; a row of zeros stays."""
    lengths = np.linalg.norm(steps.astype(np.float64), axis=1, keepdims=True)
    units: FloatArray = (steps / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
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
