"""The model of many clients at once, on one matrix of parameters."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from client.flat import FlatLayout
from client.stacked_layers import Dense, Dropout, Sink, StackedLayer, stack_layers
from client.stacked_losses import STACKED_LOSSES
from common.experiment import Experiment
from common.model import MLPTrunk, MultiTaskModel

Shares = Mapping[str, Tensor | float]


class StackedModel:
    """Trunk and heads of K clients, forward and backward by hand.

    Args:
        experiment: kinds of the tasks.
        model: one client's model; only its structure is read.
        layout: where its parameters lie.

    Raises:
        NotImplementedError: names a layer that has no stacked form.
    """

    def __init__(self, experiment: Experiment, model: MultiTaskModel, layout: FlatLayout) -> None:
        if not isinstance(model.trunk, MLPTrunk):
            raise NotImplementedError(type(model.trunk).__name__)
        self.kinds = {name: task.kind for name, task in experiment.tasks.items()}
        self.trunk = stack_layers(model.trunk.layers, "trunk.layers.", layout)
        self.tasks: dict[str, slice] = {}  # task -> its columns of the common head's outputs
        self.heads: dict[str, list[StackedLayer]] = {}  # heads that go by themselves
        self.common: Dense | None = None
        self._bound: Tensor | None = None
        heads = {n: model.heads[f"task-{n}"] for n in self.kinds}
        if layout.heads is None:
            for name, head in heads.items():
                self.heads[name] = stack_layers(head, f"heads.task-{name}.", layout)
            return
        width, start = model.trunk.width, 0
        for name, head in heads.items():
            outputs = sum(p.numel() for p in head.parameters()) // (width + 1)
            self.tasks[name] = slice(start, start + outputs)
            start += outputs
        self.common = Dense(*layout.heads, (start, width))

    @property
    def dropouts(self) -> list[Dropout]:
        """The layers that draw masks."""
        return [layer for layer in self.layers if isinstance(layer, Dropout)]

    @property
    def layers(self) -> list[StackedLayer]:
        """All layers."""
        layers = [*self.trunk, *(layer for head in self.heads.values() for layer in head)]
        return layers if self.common is None else [*layers, self.common]

    def bind(self, values: Tensor) -> None:
        """Work on the parameters of these clients, [K, P], from now on."""
        if values is self._bound:
            return
        self._bound = values
        for layer in self.layers:
            layer.bind(values)

    def outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        """Map [K, B, D] to task name -> [K, B, outputs]."""
        features = inputs
        for layer in self.trunk:
            features = layer.forward(features)
        if self.common is not None:
            joint = self.common.forward(features)
            return {task: joint[:, :, columns] for task, columns in self.tasks.items()}
        results = {}
        for task, head in self.heads.items():
            result = features
            for layer in head:
                result = layer.forward(result)
            results[task] = result
        return results

    def step(
        self,
        inputs: Tensor,
        targets: Mapping[str, Tensor],
        shares: Shares,
        sink: Sink,
    ) -> dict[str, Tensor]:
        """Hand the gradient of every client's loss on its batch to the sink.

        Args:
            inputs: [K, B, D].
            targets: task name -> [K, B] or [K, B, outputs]; only these tasks are taught.
            shares: task name -> what each row counts: [K, B], or one number for all.
            sink: takes the gradients.

        Returns:
            Task name -> loss of each row, [K, B].
        """
        outputs = self.outputs(inputs)
        losses, slopes = {}, {}
        for task, target in targets.items():
            losses[task], slopes[task] = STACKED_LOSSES[self.kinds[task]](
                outputs[task], target, shares[task]
            )
        slope = self._heads_backward(slopes, sink)
        for depth in range(len(self.trunk) - 1, -1, -1):
            slope = self.trunk[depth].backward(slope, sink, deeper=depth > 0)
        return losses

    def _heads_backward(self, slopes: Mapping[str, Tensor], sink: Sink) -> Tensor:
        """Return the gradient of the features; heads of tasks that are not taught get none."""
        deeper = bool(self.trunk)
        if self.common is not None:
            some = next(iter(slopes.values()))
            blank = some.new_zeros(1, 1, 1)
            joint = torch.cat(
                [
                    slopes[task]
                    if task in slopes
                    else blank.expand(*some.shape[:2], columns.stop - columns.start)
                    for task, columns in self.tasks.items()
                ],
                dim=2,
            )
            return self.common.backward(joint, sink, deeper=deeper)
        below = []
        for task, slope in slopes.items():
            layers = self.heads[task]
            for depth in range(len(layers) - 1, -1, -1):
                slope = layers[depth].backward(slope, sink, deeper=depth > 0 or deeper)
            below.append(slope)
        return functools.reduce(torch.add, below) if deeper else below[0]
