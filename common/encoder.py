"""Encoders: networks from a row's inputs to one vector of features, built from stages.

A trunk is one encoder, or several that a sharing architecture ties together; stages are the places
where it can tie them.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from common.experiment import Trunk
from common.norms import make_norm, needs_bias

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


def dense_block(width: int, out: int, settings: Trunk) -> list[nn.Module]:
    """Make one fully connected layer with what follows it."""
    layers: list[nn.Module] = [nn.Linear(width, out, needs_bias(settings))]
    layers += make_norm(out, settings)
    if settings.activation != "none":
        layers.append(ACTIVATIONS[settings.activation]())
    if settings.dropout:
        layers.append(SeededDropout(settings.dropout))
    return layers


class DenseLayers(nn.Sequential):
    """Fully connected layers, one block after another.

    Attributes:
        width: number of features it gives.
        blocks: the layers of each block; the modules are those of the sequence.
    """

    def __init__(self, width: int, settings: Trunk) -> None:
        self.blocks: list[list[nn.Module]] = []
        for out in settings.widths:
            self.blocks.append(dense_block(width, out, settings))
            width = out
        self.width = width
        super().__init__(*(layer for block in self.blocks for layer in block))


class MLP(nn.Module):
    """Flatten and concatenate all inputs, then fully connected layers.

    Attributes:
        width: number of features it gives.
    """

    def __init__(self, settings: Trunk, shapes: InputShapes) -> None:
        super().__init__()
        self.names = tuple(shapes)
        self.layers = DenseLayers(sum(math.prod(s) for s in shapes.values()), settings)
        self.width = self.layers.width

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map input name -> [N, ...] to features [N, width]."""
        features: Tensor = self.layers(side_by_side(inputs, self.names))
        return features


class CNN(nn.Module):
    """Per image input: 3x3 convolutions with 2x2 max pooling; then all inputs through dense layers.

    The activation follows the pooling, which leaves it a quarter of the values; for one that never
    falls, such as ReLU, the order makes no difference to the result. A norm comes before the
    pooling and sees all places.

    Attributes:
        width: number of features it gives.
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
                layers += [nn.Conv2d(channels, out, 3, padding=1, bias=needs_bias(settings))]
                layers += make_norm(out, settings)
                layers += [nn.MaxPool2d(2, ceil_mode=True), ACTIVATIONS[settings.activation]()]
                channels, height, breadth = out, (height + 1) // 2, (breadth + 1) // 2
            self.stacks[f"input-{name}"] = nn.Sequential(*layers, nn.Flatten())
            width += channels * height * breadth
        self.layers = DenseLayers(width, settings)
        self.width = self.layers.width

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


def side_by_side(inputs: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Flatten inputs and lay them side by side, [N, D]."""
    flat = [inputs[name].flatten(1) for name in names]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _channels_last(images: Tensor) -> Tensor:
    """Lay images [N, C, H, W] out pixel by pixel: on a CPU, pooling takes half the time then."""
    if images.device.type != "cpu":
        return images
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    # With one channel both layouts are one, and PyTorch goes by the strides.
    _, _, height, width = images.shape
    return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))


Encoder = MLP | CNN
ENCODERS: dict[str, type[MLP] | type[CNN]] = {"mlp": MLP, "cnn": CNN}


def build_encoder(settings: Trunk, shapes: InputShapes) -> Encoder:
    """Build the encoder that the trunk's settings name."""
    return ENCODERS[settings.architecture](settings, shapes)
