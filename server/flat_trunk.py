"""The trunk as one flat row: which columns belong to which parameter, and which to the model.

What an algorithm sends beside the model, such as SCAFFOLD's control variates, has names that begin
with ``control.`` and stands behind the model's own parameters. No rule ever sees it.
"""

import math
from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from common.errors import ShapeError
from common.sharing import travels_beside
from common.wire import FloatArray


class FlatTrunk:
    """Names, shapes, dtypes and columns of what travels.

    Args:
        trunk: the initial trunk, in the order that all trunks have.

    Attributes:
        shapes: name -> shape.
        dtypes: name -> dtype.
        columns: parameter of the model -> its columns.
        width: number of the model's columns, Q.
        full_width: number of all columns, control variates included.
        dtype: of a flat row.
    """

    def __init__(self, trunk: ArrayRecord) -> None:
        self.shapes = {name: tuple(array.shape) for name, array in trunk.items()}
        self.dtypes = {name: np.dtype(array.dtype) for name, array in trunk.items()}
        self.columns: dict[str, slice] = {}
        self.width = self.full_width = 0
        for name, shape in self.shapes.items():
            start, self.full_width = self.full_width, self.full_width + math.prod(shape)
            if not travels_beside(name):
                if start != self.width:
                    raise ShapeError(f"{name} must stand before all that travel beside the trunk")
                self.columns[name] = slice(start, self.full_width)
                self.width = self.full_width
        self.dtype = np.result_type(*self.dtypes.values()) if self.dtypes else np.dtype(np.float32)

    def flatten(self, arrays: Mapping[str, NDArray[np.generic]]) -> FloatArray:
        """Lay named arrays side by side, [Q] and control variates behind."""
        flat = np.empty(self.full_width, self.dtype)
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            flat[start:stop] = arrays[name].reshape(-1)
            start = stop
        return flat

    def cut(self, row: FloatArray) -> dict[str, FloatArray]:
        """Cut a flat row into its arrays, of the trunk's own dtypes; [Q] gives the model alone."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            if stop > len(row):
                break
            # The mean of integers is none; the next round needs the trunk's own types.
            arrays[name] = row[start:stop].reshape(shape).astype(self.dtypes[name], copy=False)
            start = stop
        return arrays


def model_arrays(trunk: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Leave out what travels beside the model."""
    return {name: array for name, array in trunk.items() if not travels_beside(name)}
