"""Mean and deviation per column, from one client's rows or from sums over many clients.

A column is the second axis: [N, columns] for numbers, [N, channels, height, width] for images.
NaN counts for nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def scaling_of(values: NDArray[Any]) -> Scaling:
    """Compute the scaling of one client's rows.

    >>> scaling_of(np.array([[1.0, 7.0], [3.0, 7.0], [np.nan, 7.0]]))
    Scaling(mean=array([2., 7.]), deviation=array([1., 1.]))
    """
    count, total, _ = column_sums(values)
    mean = total / np.maximum(count, 1)
    centred = Scaling(mean, np.ones_like(mean)).apply(values)
    return _scaling(mean, column_sums(centred)[2] / np.maximum(count, 1))


def column_sums(values: NDArray[Any]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count, sum and sum of squares of every column, in float64, NaN left out: [columns] each."""
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    present = ~np.isnan(values)
    filled = np.where(present, values, 0).astype(np.float64)
    return (
        present.sum(axis=axes).astype(np.float64),
        np.asarray(filled.sum(axis=axes)),
        np.asarray(np.square(filled).sum(axis=axes)),
    )


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
