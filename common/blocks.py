"""Rows taken block by block, so that what is computed of them never copies them all.

Sums depend, in their last bits, on where blocks begin. The rule goes by the shape of the rows
alone, so rows in memory and rows in a mapped file give the same numbers.
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IndexArray = NDArray[np.int64]

NUMBERS = 2**21  # of a block: 16 MiB in float64


class RowArray(Protocol):
    """What rows can be taken of: an array [N, ...], in memory or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""

    @property
    def nbytes(self) -> int:
        """Memory of the whole; 0 for what lies in a file."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of what a cell holds."""

    def __len__(self) -> int:
        """Count the rows."""

    def __getitem__(self, rows: Any) -> Any:
        """Take rows into memory."""


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Say how many rows [N, ...] of this shape make a block."""
    return max(1, NUMBERS // max(1, math.prod(shape[1:])))


def blocks(values: RowArray, rows: IndexArray) -> Iterator[NDArray[Any]]:
    """Take rows by their numbers, block by block; at least one, if only an empty one."""
    size = rows_at_once(values.shape)
    for start in range(0, max(1, len(rows)), size):
        yield values[rows[start : start + size]]
