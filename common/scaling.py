"""Mean and deviation per column, from one client's rows or from sums over many clients.

A column is the second axis: [N, columns] for numbers, [N, channels, height, width] for images.
NaN counts for nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.blocks import IndexArray, RowArray, blocks
from common.cells import FloatArray

# Sums of squares in float64 lose deviations below about 3e-8 of the mean to rounding.
CONSTANT = 1e-6


@dataclass(frozen=True)
class Scaling:
    """How columns are standardised: ``(value - mean) / deviation``.

    Attributes:
        mean: float64 [columns]; 0 where there was no value.
        deviation: float64 [columns], of the population; 1 where the column is constant.
    """

    mean: FloatArray
    deviation: FloatArray

    def apply(self, values: NDArray[Any]) -> NDArray[Any]:
        """Standardise; the shape is kept."""
        mean, deviation = self._aligned(values)
        return np.asarray((values - mean) / deviation)

    def fill(self, values: NDArray[Any]) -> NDArray[Any]:
        """Put the mean where a value is NaN."""
        mean, _ = self._aligned(values)
        return np.where(np.isnan(values), mean, values)

    def _aligned(self, values: NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        shape = (1, -1) + (1,) * (values.ndim - 2)
        return self.mean.reshape(shape), self.deviation.reshape(shape)


def scaling_of(values: RowArray, rows: IndexArray | None = None) -> Scaling:
    """Compute the scaling of one client's rows; with `rows`, of these.

    >>> scaling_of(np.array([[1.0, 7.0], [3.0, 7.0], [np.nan, 7.0]]))
    Scaling(mean=array([2., 7.]), deviation=array([1., 1.]))
    """
    count, total, _ = column_sums(values, rows)
    mean = total / np.maximum(count, 1)
    centre = Scaling(mean, np.ones_like(mean))
    squares = _sum_blocks(centre.apply(block) for block in _blocks(values, rows))[2]
    return _scaling(mean, squares / np.maximum(count, 1))


def column_sums(
    values: RowArray, rows: IndexArray | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count, sum and sum of squares of every column, in float64, NaN left out: [columns] each.

    Args:
        values: [N, columns, ...].
        rows: numbers of the rows that count; None for all.
    """
    return _sum_blocks(_blocks(values, rows))


def _blocks(values: RowArray, rows: IndexArray | None) -> Iterator[NDArray[Any]]:
    return blocks(values, np.arange(len(values)) if rows is None else rows)


def _sum_blocks(
    parts: Iterable[NDArray[Any]],
) -> tuple[FloatArray, FloatArray, FloatArray]:
    counts, totals, squares = np.float64(0), np.float64(0), np.float64(0)
    for part in parts:
        axes = tuple(axis for axis in range(part.ndim) if axis != 1)
        present = ~np.isnan(part)
        filled = np.where(present, part, 0).astype(np.float64)
        counts = counts + present.sum(axis=axes).astype(np.float64)
        totals = totals + filled.sum(axis=axes)
        squares = squares + np.square(filled).sum(axis=axes)
    return np.asarray(counts), np.asarray(totals), np.asarray(squares)


def scaling_from_sums(count: FloatArray, total: FloatArray, squares: FloatArray) -> Scaling:
    """Compute the scaling of all clients' rows from their added sums, [columns] each.

    >>> scaling_from_sums(np.array([2.0]), np.array([4.0]), np.array([10.0]))
    Scaling(mean=array([2.]), deviation=array([1.]))
    """
    mean = total / np.maximum(count, 1)
    return _scaling(mean, squares / np.maximum(count, 1) - mean**2)


def _scaling(mean: FloatArray, variance: FloatArray) -> Scaling:
    deviation = np.sqrt(np.maximum(variance, 0.0))
    constant = deviation <= CONSTANT * np.abs(mean)
    return Scaling(mean, np.where(constant, 1.0, deviation))
