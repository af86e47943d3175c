"""Layers of many clients at once, with gradients written by hand.

A layer is bound to the clients' parameters, rows of one matrix [K, P], and sees features
[K, B, width], one slab of B rows per client. Forward keeps what backward needs; backward hands the
parameters' gradients to a sink and returns the gradient of its input. No autograd graph is built:
for the small layers that federations of many clients train, building it costs more than the
arithmetic.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from client.batches import Index
from client.flat import FlatLayout
from common import norms
from common.encoder import SeededDropout
from common.norms import EPSILON, MOMENTUM

NO_COUNTS: Index = np.zeros(0, np.int64)


class Sink(Protocol):
    """Takes the gradients of parameters as they are found."""

    def weight(self, layer: "Dense", slope: Tensor) -> None:
        """Take a weight's gradient ``slope^T inputs``, with the layer's inputs."""

    def vector(self, place: slice, vector: Tensor, rows: Tensor) -> None:
        """Take what adds up, over rows [K, B, width], to the gradient of a vector [K, width]."""


class TrainedOnly:
    """A sink that takes nothing of frozen parameters, so that nothing is computed for them.

    Args:
        sink: takes the rest.
        frozen: first columns of parameters that are frozen.
    """

    def __init__(self, sink: Sink, frozen: Collection[int]) -> None:
        self.sink, self.frozen = sink, frozen

    def weight(self, layer: "Dense", slope: Tensor) -> None:
        """Pass on a weight's gradient."""
        if layer.place.start not in self.frozen:
            self.sink.weight(layer, slope)

    def vector(self, place: slice, vector: Tensor, rows: Tensor) -> None:
        """Pass on a vector's gradient."""
        if place.start not in self.frozen:
            self.sink.vector(place, vector, rows)


class StackedLayer(Protocol):
    """One layer of all clients."""

    def bind(self, values: Tensor) -> None:
        """Work on these parameters, [K, P], from now on."""

    def forward(self, features: Tensor) -> Tensor:
        """Map [K, B, in] to [K, B, out]."""

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """Map the gradient of the output to that of the input; any tensor where not `deeper`."""


class Dense:
    """``y = x W^T + b`` for every client, nn.Linear's arithmetic.

    Attributes:
        place: columns of the weights.
        bias_place: columns of the biases; None for a layer without.
        shape: (out, in).
        weights: [K, out, in], a view of the bound parameters.
        inputs: what forward was last given.
    """

    def __init__(self, place: slice, bias_place: slice | None, shape: tuple[int, ...]) -> None:
        self.place, self.bias_place, self.shape = place, bias_place, shape
        self.weights: Tensor
        self.inputs: Tensor

    def bind(self, values: Tensor) -> None:
        """Cut the views once: cutting them anew at every step costs as much as a product."""
        self.weights = values[:, self.place].view(len(values), *self.shape)
        self._transposed = self.weights.transpose(1, 2)
        if self.bias_place is not None:
            self._bias = values[:, self.bias_place]
            self._bias_row = self._bias.unsqueeze(1)

    def forward(self, features: Tensor) -> Tensor:
        """Multiply and add."""
        self.inputs = features
        if self.bias_place is None:
            return torch.bmm(features, self._transposed)
        return torch.baddbmm(self._bias_row, features, self._transposed)

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """``dx = dy W``, ``dW = dy^T x``, ``db = sum_rows dy``."""
        # Before the sink: it may move the weights at once.
        below = torch.bmm(slope, self.weights) if deeper else slope
        sink.weight(self, slope)
        if self.bias_place is not None:
            sink.vector(self.bias_place, self._bias, slope)
        return below


class Activation:
    """An elementwise function and its derivative in terms of what forward keeps."""

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor, Tensor], Tensor],
        *,
        keep_input: bool = False,
    ) -> None:
        self.function, self.derivative, self.keep_input = function, derivative, keep_input
        self.kept: Tensor

    def bind(self, values: Tensor) -> None:
        """It has no parameters."""

    def forward(self, features: Tensor) -> Tensor:
        """Apply the function."""
        result = self.function(features)
        self.kept = features if self.keep_input else result
        return result

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """Multiply with the derivative."""
        return self.derivative(slope, self.kept)


class RowNorm:
    """`common.norms.GroupNorm`: each row by itself."""

    def __init__(self, place: slice, bias_place: slice, groups: int) -> None:
        self.place, self.bias_place, self.groups = place, bias_place, groups
        self.normal: Tensor
        self.scale: Tensor

    def bind(self, values: Tensor) -> None:
        """Cut the views once."""
        self._weight, self._bias = values[:, self.place], values[:, self.bias_place]

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each row's groups, then scale and shift."""
        grouped = self._group(features)  # [K, B, G, C / G]
        variance, mean = torch.var_mean(grouped, dim=3, correction=0, keepdim=True)
        self.scale = (variance + EPSILON).rsqrt()
        self.normal = ((grouped - mean) * self.scale).flatten(2)
        return torch.addcmul(self._bias.unsqueeze(1), self.normal, self._weight.unsqueeze(1))

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """``dx = s (g - mean(g) - n mean(g n))`` with ``g = dy w``, n normalised, s the scale."""
        inner = self._group(slope * self._weight.unsqueeze(1))
        sink.vector(self.place, self._weight, slope * self.normal)
        sink.vector(self.bias_place, self._bias, slope)
        normal = self.normal.view_as(inner)
        correlation = (inner * normal).mean(3, keepdim=True)
        below = self.scale * (inner - inner.mean(3, keepdim=True) - normal * correlation)
        return below.flatten(2)

    def _group(self, features: Tensor) -> Tensor:
        return features.reshape(*features.shape[:2], self.groups, -1)


class BatchNorm:
    """`common.norms.BatchNorm`: over each client's own rows, and never over padding.

    Args:
        places: parameter -> its columns.
        frozen: it normalises in training as in evaluation.

    Attributes:
        counts: int64 [K], number of real rows of each client in the batch; empty in evaluation.
    """

    def __init__(self, places: Mapping[str, slice], *, frozen: bool = False) -> None:
        self.places, self.frozen = places, frozen
        self.counts = NO_COUNTS
        self.normal: Tensor
        self.scale: Tensor
        self.share: Tensor

    def bind(self, values: Tensor) -> None:
        """Cut the views once."""
        views = {name: values[:, place] for name, place in self.places.items()}
        self._weight, self._bias = views["norm_weight"], views["norm_bias"]
        self._mean, self._variance = views["norm_mean"], views["norm_variance"]

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each feature, then scale and shift."""
        mean, variance = self._mean, self._variance
        if self.frozen:
            self.share = features.new_zeros(1)  # no row has one in the statistics
        elif len(self.counts):
            mean, variance = self._measure(features)
        self.scale = (variance + EPSILON).rsqrt().unsqueeze(1)  # [K, 1, C]
        self.normal = (features - mean.unsqueeze(1)) * self.scale
        return torch.addcmul(self._bias.unsqueeze(1), self.normal, self._weight.unsqueeze(1))

    def _measure(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Move the running statistics; return what to normalise by, mean and variance [K, C].

        What each row counts in these is kept for backward.
        """
        counts = torch.from_numpy(self.counts).to(features.device).unsqueeze(1)  # [K, 1]
        several = counts > 1
        rows = torch.arange(features.shape[1], device=features.device)
        self.share = ((several & (rows < counts)) / counts).unsqueeze(2)  # [K, B, 1]
        mean = (features * self.share).sum(1)
        variance = ((features - mean.unsqueeze(1)).square() * self.share).sum(1)
        momentum = MOMENTUM * several
        self._mean.lerp_(mean, momentum)
        self._variance.lerp_(variance * counts / (counts - 1).clamp(min=1), momentum)
        return (
            torch.where(several, mean, self._mean),
            torch.where(several, variance, self._variance),
        )

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """``dx = s (g - a (sum(g) + n sum(g n)))``, a the row's share in the statistics.

        With ``g = dy w``, n normalised, s the scale; sums over rows. A row alone has no share.
        """
        along = slope * self.normal
        weight, bias = along.sum(1), slope.sum(1)
        below = slope - self.share * (bias.unsqueeze(1) + self.normal * weight.unsqueeze(1))
        below *= self.scale * self._weight.unsqueeze(1)
        # Last: the sink may move the weights at once.
        sink.vector(self.places["norm_weight"], self._weight, weight.unsqueeze(1))
        sink.vector(self.places["norm_bias"], self._bias, bias.unsqueeze(1))
        return below


class Dropout:
    """Dropout whose masks come from each client's own generator, as `SeededDropout` draws them.

    Attributes:
        generators: one per client, in the order of the rows of the stack; none in evaluation.
        counts: int64 [K], number of real rows of each client in the batch; the rest is padding.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.generators: list[torch.Generator] = []
        self.counts = NO_COUNTS
        self.mask: Tensor | None = None

    def bind(self, values: Tensor) -> None:
        """It has no parameters."""

    def forward(self, features: Tensor) -> Tensor:
        """Zero entries and scale the rest, in training only."""
        self.mask = None
        if not self.generators:
            return features
        mask = torch.zeros(features.shape)
        counts = self.counts.tolist()
        for slab, count, generator in zip(mask, counts, self.generators, strict=False):
            keep = torch.rand((count, features.shape[2]), generator=generator) >= self.rate
            slab[:count] = keep
        self.mask = (mask / (1 - self.rate)).to(features.device)
        return features * self.mask

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """Let the gradient through where the features went through."""
        return slope if self.mask is None else slope * self.mask


def _relu() -> Activation:
    # In place, as nobody else reads a product or a norm; and after a layer's backward nobody needs
    # its outputs any more. The sign of what passed is the derivative: 0 or 1.
    return Activation(torch.relu_, lambda slope, out: slope.mul_(out.sign_()))


def _tanh() -> Activation:
    return Activation(torch.tanh, lambda slope, out: torch.ops.aten.tanh_backward(slope, out))


def _gelu() -> Activation:
    return Activation(
        torch.nn.functional.gelu,
        lambda slope, x: torch.ops.aten.gelu_backward(slope, x),
        keep_input=True,
    )


ACTIVATIONS: dict[type[nn.Module], Callable[[], Activation]] = {
    nn.ReLU: _relu,
    nn.Tanh: _tanh,
    nn.GELU: _gelu,
}


def stack_layers(module: nn.Module, prefix: str, layout: FlatLayout) -> list[StackedLayer]:
    """Translate a sequence of PyTorch layers.

    Args:
        module: the layers.
        prefix: their parameters' names begin with it, such as "trunk.encoder.layers.".
        layout: where the parameters lie.

    Raises:
        NotImplementedError: names the type of a layer that has no stacked form.
    """
    layers: list[StackedLayer] = []
    for index, layer in module.named_children():
        names = [name for name, _ in layer.named_parameters()]
        own = {name: layout.slices[f"{prefix}{index}.{name}"] for name in names}
        if isinstance(layer, nn.Linear):
            shape = (layer.out_features, layer.in_features)
            layers.append(Dense(own["weight"], own.get("bias"), shape))
        elif isinstance(layer, norms.GroupNorm):
            layers.append(RowNorm(own["norm_weight"], own["norm_bias"], layer.groups))
        elif isinstance(layer, norms.BatchNorm):
            layers.append(BatchNorm(own, frozen=layer.is_frozen))
        elif isinstance(layer, SeededDropout):
            layers.append(Dropout(layer.rate))
        elif type(layer) in ACTIVATIONS:
            layers.append(ACTIVATIONS[type(layer)]())
        else:
            raise NotImplementedError(type(layer).__name__)
    return layers
