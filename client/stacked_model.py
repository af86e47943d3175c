"""The model of many clients at once, on one matrix of parameters."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from client.flat import FlatLayout
from client.stacked_layers import (
    BatchNorm,
    Dense,
    Dropout,
    Sink,
    StackedLayer,
    TrainedOnly,
    stack_layers,
)
from client.stacked_losses import MOST_CLASSES, TaskColumns
from common.experiment import Experiment
from common.model import MultiTaskModel, output_width
from common.sections.training import STACKED_OPTIMISERS
from common.weighting.balance import Rules


def find_obstacle(experiment: Experiment) -> str | None:
    """Say why an experiment's model has no stacked form; None where it has one."""
    if experiment.trunk.sharing != "hard":
        return f"trunk.sharing '{experiment.trunk.sharing}' has no stacked form"
    if (obstacle := _find_loss_obstacle(experiment)) is not None:
        return obstacle
    if experiment.trunk.architecture != "mlp":
        return f"trunk.architecture '{experiment.trunk.architecture}' has no stacked form"
    if experiment.trunk.adapters is not None:
        return "[trunk.adapters] has no stacked form"
    if experiment.training.optimiser not in STACKED_OPTIMISERS:
        return f"training.optimiser '{experiment.training.optimiser}' has no stacked form"
    if experiment.training.patience is not None:
        drops = experiment.trunk.dropout or any(t.dropout for t in experiment.tasks.values())
        if drops or not Rules(experiment).is_fixed:  # clients that stopped would go on with these
            what = "dropout" if drops else f"loss.weighting '{experiment.loss.weighting}'"
            return f"{what} has no stacked form with training.patience"
    for name in ("precision", "micro_batch", "recompute_activations"):
        if (value := getattr(experiment.training, name)) not in ("float32", None, False):
            key = name.replace("_", "-")
            return f"training.{key} {str(value).lower()!r} has no stacked form"
    for name, task in experiment.tasks.items():
        if (task.class_count or 0) > MOST_CLASSES:
            return (
                f"task '{name}' has more than {MOST_CLASSES} classes, too many for one-hot targets"
            )
    return None


def find_batched_obstacle(experiment: Experiment) -> str | None:
    """Say why the batched engine, which has all clients in memory, cannot train an experiment."""
    if experiment.data.memory == "disk":
        return "data.memory 'disk' leaves rows out of memory, and the engine has all clients' there"
    return find_obstacle(experiment)


def _find_loss_obstacle(experiment: Experiment) -> str | None:
    rules, loss = Rules(experiment), experiment.loss
    if rules.gradients is not None or rules.weighting.needs_norms:
        return f"loss.weighting '{loss.weighting}' needs the tasks' own gradients"
    if rules.norms:
        return f"loss.record '{loss.record}' needs the tasks' own gradients"
    if experiment.training.compile and not rules.is_fixed:
        return f"loss.weighting '{loss.weighting}' has no stacked form under training.compile"
    return None


class StackedModel:
    """Trunk and heads of K clients, forward and backward by hand.

    Args:
        experiment: one without an obstacle.
        model: one client's model; only its structure is read.
        layout: where its parameters lie.

    Attributes:
        tasks: where the tasks' outputs lie side by side.
        counting: layers that must know, in training, how many of each client's rows are real.
        frozen: first columns of the parameters that no gradient moves.
        lowest: place of the trunk's first layer that trains; backward goes no deeper.
    """

    def __init__(self, experiment: Experiment, model: MultiTaskModel, layout: FlatLayout) -> None:
        kinds = {name: task.kind for name, task in experiment.tasks.items()}
        widths = {
            name: output_width(task, len(experiment.targets(name)))
            for name, task in experiment.tasks.items()
        }
        self.tasks = TaskColumns(kinds, widths)
        features = model.trunk.width
        self.trunk = stack_layers(
            model.trunk.get_submodule("encoder.layers"), "trunk.encoder.layers.", layout
        )
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self.frozen: set[int] = set()
        if not experiment.trunk.trains_everything:
            places = layout.slices.items()
            self.frozen = {place.start for name, place in places if name not in trained}
        self.lowest = _lowest_trained(model.trunk.get_submodule("encoder.layers"))
        self.heads: list[list[StackedLayer]] = []  # task by task, or one that serves them all
        # Dropout gives every head features of its own.
        if layout.heads is not None and not any(t.dropout for t in experiment.tasks.values()):
            self.heads = [[Dense(*layout.heads, (self.tasks.width, features))]]
        else:
            for name in kinds:
                head = model.heads[f"task-{name}"]
                self.heads.append(stack_layers(head, f"heads.task-{name}.", layout))
        self.layers = [*self.trunk, *(layer for head in self.heads for layer in head)]
        self.dropouts = [layer for layer in self.layers if isinstance(layer, Dropout)]
        self.counting = [la for la in self.layers if isinstance(la, (Dropout, BatchNorm))]
        self._bound: tuple[int, torch.Size] | None = None

    def bind(self, values: Tensor) -> None:
        """Work on the parameters of these clients, [K, P], from now on; again the same is free."""
        # The layers' views keep the memory: no other parameters can come to lie at its address.
        place = (values.data_ptr(), values.shape)
        if place == self._bound:
            return
        self._bound = place
        for layer in self.layers:
            layer.bind(values)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Map [K, B, D] to the outputs of all tasks side by side, [K, B, O]."""
        features = inputs
        for layer in self.trunk:
            features = layer.forward(features)
        results = []
        for head in self.heads:
            result = features
            for layer in head:
                result = layer.forward(result)
            results.append(result)
        return results[0] if len(results) == 1 else torch.cat(results, 2)

    def step(
        self, inputs: Tensor, targets: Tensor, share: Tensor, kept: Tensor, sink: Sink
    ) -> None:
        """Hand the gradient of every client's loss on its batch to the sink.

        Args:
            inputs: [K, B, D].
            targets: [K, B, O] of `TaskColumns.encode`.
            share: what each row counts, as in `TaskColumns.slope`.
            kept: takes the outputs before the step, [K, B, O].
            sink: takes the gradients.
        """
        outputs = self.outputs(inputs)
        kept.copy_(outputs)
        self.backward(outputs, targets, share, sink)

    def backward(self, outputs: Tensor, targets: Tensor, share: Tensor, sink: Sink) -> None:
        """Do what `step` does after its forward; `outputs` is overwritten."""
        if self.frozen:
            sink = TrainedOnly(sink, self.frozen)
        slope = self._heads_backward(self.tasks.slope(outputs, targets, share), sink)
        for depth in range(len(self.trunk) - 1, self.lowest - 1, -1):
            slope = self.trunk[depth].backward(slope, sink, deeper=depth > self.lowest)

    def _heads_backward(self, slope: Tensor, sink: Sink) -> Tensor:
        """Return the gradient of the features."""
        deeper = self.lowest < len(self.trunk)
        if len(self.heads) == 1:
            return _backward(self.heads[0], slope, sink, deeper=deeper)
        below: Tensor | None = None
        for head, own in zip(self.heads, self.tasks.cut(slope).values(), strict=True):
            more = _backward(head, own, sink, deeper=deeper)
            below = more if below is None or not deeper else below + more
        if below is None:
            raise RuntimeError("a model without heads passed the schema")
        return below


def _lowest_trained(layers: nn.Module) -> int:
    """Find the first layer with a parameter that trains; behind the last where none does."""
    places = list(layers.children())
    trains = [any(p.requires_grad for p in layer.parameters()) for layer in places]
    return trains.index(True) if True in trains else len(places)


def _backward(layers: Sequence[StackedLayer], slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
    for depth in range(len(layers) - 1, -1, -1):
        slope = layers[depth].backward(slope, sink, deeper=depth > 0 or deeper)
    return slope
