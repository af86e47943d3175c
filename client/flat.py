"""Parameters of one or many copies of a model as rows of one matrix.

Loading a trunk, resetting gradients and an optimiser step are then one operation on a slice of
columns each, instead of one per parameter and copy. The trunk comes first: what all tasks share,
then the parts of each task. Where all heads are linear, their weights lie side by side and then
their biases, so that one product serves all heads.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ShapeError
from common.sharing import task_of

FloatArray = NDArray[np.float32]
TRUNK = "trunk."  # a part that no task is called: their names have no dot
HEADS = "heads."


class FlatLayout:
    """Where each parameter of a model lies in a flat vector; what is not trained, behind the trunk.

    Attributes:
        size: P, number of parameters.
        slices: parameter name -> its columns.
        shapes: parameter name -> its own shape.
        segments: `TRUNK` and every task name -> the columns of what is trained and belongs to all
            tasks or to that one (`common.sharing.task_of`), as few slices as can be.
        heads: columns of all weights, and of all biases, of linear heads; None where a head has
            hidden layers.
    """

    def __init__(self, model: nn.Module) -> None:
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
        trunk = [name for name in shapes if not name.startswith(HEADS)]
        trunk.sort(key=lambda name: (name in fixed, task_of(name) or ""))  # stable
        heads = [name for name in shapes if name.startswith(HEADS)]
        tasks = {task_of(name) for name in heads}
        linear = len(heads) == 2 * len(tasks)
        if linear:
            heads.sort(key=lambda name: name.endswith("bias"))  # stable: the order of tasks stays
        self.shapes = {name: shapes[name] for name in [*trunk, *heads]}
        self.slices: dict[str, slice] = {}
        parts: dict[str, list[slice]] = {TRUNK: []}
        start = 0
        for name, shape in self.shapes.items():
            self.slices[name] = slice(start, start + int(np.prod(shape)))
            if name not in fixed:
                parts.setdefault(task_of(name) or TRUNK, []).append(self.slices[name])
            start = self.slices[name].stop
        self.size = start
        self.segments = {part: merge_neighbours(places) for part, places in parts.items()}
        self.heads: tuple[slice, slice] | None = None
        if linear:
            half = len(heads) // 2
            self.heads = (self._span(heads[:half]), self._span(heads[half:]))

    def _span(self, names: list[str]) -> slice:
        return slice(self.slices[names[0]].start, self.slices[names[-1]].stop)

    def views(self, row: NDArray[np.float32], names: Iterable[str]) -> dict[str, FloatArray]:
        """Cut a flat vector [P] into named arrays, without copying."""
        return {name: row[self.slices[name]].reshape(self.shapes[name]) for name in names}

    def check(self, arrays: Mapping[str, FloatArray]) -> None:
        """Check that arrays are parameters of this model.

        Raises:
            ShapeError: a name is unknown or a shape differs.
        """
        for name, array in arrays.items():
            if self.shapes.get(name) != array.shape:
                raise ShapeError(
                    f"parameter {name}: this model has shape {self.shapes.get(name)}, "
                    f"got {array.shape}; were both made from the same experiment?"
                )


class FlatParameters:
    """A model whose parameters and gradients are views of one vector each; it works as before.

    Attributes:
        layout: where each parameter lies.
        values: [P] float32.
        gradients: [P] float32; autograd adds into it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layout = FlatLayout(model)
        parameters = dict(model.named_parameters())
        ordered = [parameters[name].detach().reshape(-1) for name in self.layout.slices]
        self.values: Tensor = torch.cat(ordered)
        self.gradients = torch.zeros_like(self.values)
        # On the CPU, NumPy writes into the same memory at a fraction of the cost.
        self._memory = self.values.numpy() if self.values.device.type == "cpu" else None
        self._parameters = parameters
        for name, place in self.layout.slices.items():
            parameter = parameters[name]
            parameter.data = self.values[place].view_as(parameter)
            if parameter.requires_grad:
                parameter.grad = self.gradients[place].view_as(parameter)

    def last_shared_layer(self) -> list[nn.Parameter]:
        """Get the weight of the last layer that all tasks share."""
        shared = self.shared_trunk()
        return [weight for weight in shared if weight.dim() > 1][-1:] or shared[-1:]

    def shared_trunk(self) -> list[nn.Parameter]:
        """Get the trained parameters that all tasks share."""
        names = [n for n in self.layout.slices if not n.startswith(HEADS) and task_of(n) is None]
        found = [self._parameters[name] for name in names]
        return [parameter for parameter in found if parameter.requires_grad]

    def read(self, names: Iterable[str]) -> dict[str, FloatArray]:
        """Copy parameters out: name -> read-only float32 array in its own shape, on the CPU."""
        row = self._memory.copy() if self._memory is not None else self.values.cpu().numpy()
        row.flags.writeable = False
        return self.layout.views(row, names)

    def peek(self, names: Iterable[str]) -> dict[str, FloatArray]:
        """Read parameters where they are, or a copy of another device's: good until they change."""
        row = self._memory if self._memory is not None else self.values.cpu().numpy()
        return self.layout.views(row, names)

    def write(self, arrays: Mapping[str, FloatArray]) -> None:
        """Copy parameters in.

        Raises:
            ShapeError: a name is unknown or a shape differs.
        """
        self.layout.check(arrays)
        for name, array in arrays.items():
            place = self.layout.slices[name]
            if self._memory is not None:
                self._memory[place] = array.reshape(-1)
            else:
                self.values[place] = torch.tensor(array.reshape(-1)).to(self.values)


def still_places(layout: FlatLayout) -> list[slice]:
    """Find the columns of what is not trained: running statistics."""
    trained = [place for places in layout.segments.values() for place in places]
    names = layout.slices.values()
    return merge_neighbours(
        place for place in names if not any(t.start <= place.start < t.stop for t in trained)
    )


def merge_neighbours(places: Iterable[slice]) -> list[slice]:
    """Join slices that touch, so that a step over them takes fewer operations.

    >>> merge_neighbours([slice(0, 2), slice(2, 5), slice(7, 8)])
    [slice(0, 5, None), slice(7, 8, None)]
    """
    merged: list[slice] = []
    for place in sorted(places, key=lambda s: int(s.start)):
        if place.start == place.stop:
            continue
        if merged and merged[-1].stop == place.start:
            merged[-1] = slice(merged[-1].start, place.stop)
        else:
            merged.append(place)
    return merged
