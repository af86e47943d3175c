"""A model's parameters and gradients as views of one flat buffer each.

Loading a trunk, resetting gradients and an optimiser step are then one vector operation each,
instead of one per parameter. Shared parameters come first, then head after head, so that the part
that travels and every head are contiguous slices.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.errors import ShapeError
from common.sharing import head_task

FloatArray = NDArray[np.float32]


class FlatParameters:
    """The flat view of a model; the model keeps working as before.

    Attributes:
        values: [P] float32, all parameters.
        gradients: [P] float32, theirs; autograd adds into it.
        slices: parameter name -> its place.
        segments: "trunk" and every task name -> the place of that part's parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        # The trunk comes first in named_parameters(), then head after head: keep that order.
        self.values = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
        self.gradients = torch.zeros_like(self.values)
        # On the CPU, NumPy writes into the same memory at a fraction of the cost.
        self._memory = self.values.numpy() if self.values.device.type == "cpu" else None
        self.slices: dict[str, slice] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.segments: dict[str, slice] = {}
        start = 0
        for name, parameter in parameters.items():
            place = slice(start, start + parameter.numel())
            parameter.data = self.values[place].view_as(parameter)
            parameter.grad = self.gradients[place].view_as(parameter)
            self.slices[name], self.shapes[name] = place, tuple(parameter.shape)
            part = head_task(name) or "trunk"
            first = self.segments.get(part, place).start
            self.segments[part] = slice(first, place.stop)
            start = place.stop
        self.segments.setdefault("trunk", slice(0, 0))  # an empty trunk: inputs feed the heads

    def read(self, names: Iterable[str]) -> dict[str, FloatArray]:
        """Copy parameters out: name -> float32 array in its own shape, on the CPU."""
        copy = self.values.detach().cpu().numpy().copy()
        return {name: copy[self.slices[name]].reshape(self.shapes[name]) for name in names}

    def write(self, arrays: Mapping[str, FloatArray]) -> None:
        """Copy parameters in.

        Raises:
            ShapeError: a name is unknown or a shape differs.
        """
        for name, array in arrays.items():
            if name not in self.slices or self.shapes[name] != tuple(array.shape):
                raise ShapeError(
                    f"parameter {name}: this model has shape {self.shapes.get(name)}, "
                    f"got {tuple(array.shape)}; were both made from the same experiment?"
                )
            place = self.slices[name]
            if self._memory is not None:
                self._memory[place] = array.reshape(-1)
            else:
                self.values[place] = torch.tensor(array.reshape(-1)).to(self.values)


def merge_neighbours(places: Iterable[slice]) -> list[slice]:
    """Join slices that touch, so that a step over them takes fewer operations.

    >>> merge_neighbours([slice(0, 2), slice(2, 5), slice(7, 8)])
    [slice(0, 5, None), slice(7, 8, None)]
    """
    merged: list[slice] = []
    for place in sorted(places, key=lambda s: s.start):
        if place.start == place.stop:
            continue
        if merged and merged[-1].stop == place.start:
            merged[-1] = slice(merged[-1].start, place.stop)
        else:
            merged.append(place)
    return merged
