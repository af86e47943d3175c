"""The multi-task model: one trunk that is shared, one head per task that is not.

Hard parameter sharing (Caruana, "Multitask learning", Machine Learning 28, 1997): every head reads
the same trunk features. Parameters are named ``trunk.*`` and ``heads.task-<name>.*``; what travels
is decided by those names alone (`common.sharing`).
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from common.experiment import Experiment, Task, Trunk
from common.seeding import derive_key

InputShapes = Mapping[str, tuple[int, ...]]  # input name -> shape of one row

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class SeededDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose masks come from a generator of the caller's.

    PyTorch's own draws from a global state, so that a result would depend on which client a
    process trained before.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.generator: torch.Generator | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Zero each entry with probability `rate` and scale the rest, in training only."""
        if not self.training:
            return features
        if self.generator is None:
            raise RuntimeError("SeededDropout needs a generator before training")
        keep = torch.rand(features.shape, generator=self.generator) >= self.rate
        return features * keep.to(features.device) / (1 - self.rate)


def _dense_layers(width: int, settings: Trunk) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for out in settings.widths:
        layers.append(nn.Linear(width, out))
        if settings.norm == "layer":
            layers.append(nn.LayerNorm(out))
        if settings.activation != "none":
            layers.append(ACTIVATIONS[settings.activation]())
        if settings.dropout:
            layers.append(SeededDropout(settings.dropout))
        width = out
    return layers, width


class MLPTrunk(nn.Module):
    """Flatten and concatenate all inputs, then fully connected layers.

    Attributes:
        width: number of features it hands to the heads.
    """

    def __init__(self, settings: Trunk, shapes: InputShapes) -> None:
        super().__init__()
        self.names = tuple(shapes)
        layers, self.width = _dense_layers(sum(math.prod(s) for s in shapes.values()), settings)
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map input name -> [N, ...] to features [N, width]."""
        flat = [inputs[name].flatten(1) for name in self.names]
        features: Tensor = self.layers(flat[0] if len(flat) == 1 else torch.cat(flat, dim=1))
        return features


class CNNTrunk(nn.Module):
    """Per image input: 3x3 convolutions with 2x2 max pooling; then all inputs through dense layers.

    The activation follows the pooling, which leaves it a quarter of the values; for one that never
    falls, such as ReLU, the order makes no difference to the result.

    Attributes:
        width: number of features it hands to the heads.
    """

    def __init__(self, settings: Trunk, shapes: InputShapes) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self.stacks = nn.ModuleDict()
        width = 0
        for name, shape in shapes.items():
            if len(shape) != 3:
                width += math.prod(shape)
                continue
            channels, height, breadth = shape
            layers: list[nn.Module] = []
            for out in settings.channels:
                layers += [nn.Conv2d(channels, out, 3, padding=1)]
                layers += [nn.MaxPool2d(2, ceil_mode=True), ACTIVATIONS[settings.activation]()]
                channels, height, breadth = out, (height + 1) // 2, (breadth + 1) // 2
            self.stacks[f"input-{name}"] = nn.Sequential(*layers, nn.Flatten())
            width += channels * height * breadth
        dense, self.width = _dense_layers(width, settings)
        self.layers = nn.Sequential(*dense)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map input name -> [N, ...] to features [N, width]."""
        parts = []
        for name in self.names:
            key = f"input-{name}"
            values = inputs[name]
            if key in self.stacks:
                parts.append(self.stacks[key](_channels_last(values)))
            else:
                parts.append(values.flatten(1))
        features: Tensor = self.layers(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
        return features


def _channels_last(images: Tensor) -> Tensor:
    """Lay images [N, C, H, W] out pixel by pixel: on a CPU, pooling takes half the time then."""
    if images.device.type != "cpu":
        return images
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    # With one channel both layouts are one, and PyTorch goes by the strides.
    _, _, height, width = images.shape
    return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))


TRUNKS: dict[str, type[MLPTrunk] | type[CNNTrunk]] = {"mlp": MLPTrunk, "cnn": CNNTrunk}


def output_width(task: Task, targets: int) -> int:
    """Number of outputs of a task's head; `targets` is its number of target columns."""
    if task.kind == "multiclass":
        if task.class_count is None:
            raise ValueError("a multiclass task without classes passed the schema")
        return task.class_count
    return 1 if task.kind == "binary" else targets


def build_head(task: Task, features: int, targets: int) -> nn.Sequential:
    """Make one task's head: hidden ReLU layers, then a linear layer to its outputs."""
    widths = [features, *task.hidden, output_width(task, targets)]
    layers: list[nn.Module] = []
    for narrow, wide in itertools.pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class MultiTaskModel(nn.Module):
    """A trunk and the heads of all tasks of an experiment."""

    def __init__(self, trunk: MLPTrunk | CNNTrunk, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        # A plain ModuleDict refuses task names such as "type", which are attributes of modules.
        self.heads = nn.ModuleDict({f"task-{name}": head for name, head in heads.items()})

    def forward(self, inputs: Mapping[str, Tensor], tasks: Iterable[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> [N, outputs], for the tasks asked for."""
        features = self.trunk(inputs)
        return {name: self.heads[f"task-{name}"](features) for name in tasks}


def build_model(experiment: Experiment, shapes: InputShapes) -> MultiTaskModel:
    """Build the model of an experiment, initialised from its seed.

    Trunk and every head draw from streams of their own, so that adding a task changes no other
    head. The caller's global random state is left as it was.

    Args:
        experiment: trunk, tasks and seed.
        shapes: input name -> shape of one row, without the batch dimension.
    """
    settings, seed = experiment.trunk, experiment.seed
    ordered = {name: shapes[name] for name in experiment.inputs}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(seed, "init", "trunk"))
        trunk = TRUNKS[settings.architecture](settings, ordered)
        heads = {}
        for name, task in experiment.tasks.items():
            torch.manual_seed(derive_key(seed, "init", "head", name))
            heads[name] = build_head(task, trunk.width, len(experiment.targets(name)))
    return MultiTaskModel(trunk, heads)
