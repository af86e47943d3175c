"""Layers of many clients at once, with gradients written by hand.

A layer is bound to the clients' parameters, rows of one matrix [K, P], and sees features
[K, B, width], one slab of B rows per client. Forward keeps what backward needs; backward hands the
parameters' gradients to a sink and returns the gradient of its input. No autograd graph is built:
for the small layers that federations of many clients train, building it costs more than the
arithmetic.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from client.flat import FlatLayout
from common.encoder import SeededDropout


class Sink(Protocol):
    """Takes the gradients of parameters as they are found."""

    def weight(self, layer: "Dense", slope: Tensor) -> None:
        """Take a weight's gradient ``slope^T inputs``, with the layer's inputs."""

    def vector(self, place: slice, vector: Tensor, slope: Tensor) -> None:
        """Take the gradient [K, width] of the parameters [K, width] at a place."""


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
        shape: (out, in).
        weights: [K, out, in], a view of the bound parameters.
        inputs: what forward was last given.
    """

    def __init__(self, place: slice, bias_place: slice, shape: tuple[int, ...]) -> None:
        self.place, self.bias_place, self.shape = place, bias_place, shape
        self.weights: Tensor
        self.inputs: Tensor

    def bind(self, values: Tensor) -> None:
        """Cut the views once: cutting them anew at every step costs as much as a product."""
        self.weights = values[:, self.place].view(len(values), *self.shape)
        self._transposed = self.weights.transpose(1, 2)
        self._bias = values[:, self.bias_place]
        self._bias_row = self._bias.unsqueeze(1)

    def forward(self, features: Tensor) -> Tensor:
        """Multiply and add."""
        self.inputs = features
        return torch.baddbmm(self._bias_row, features, self._transposed)

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """``dx = dy W``, ``dW = dy^T x``, ``db = sum_rows dy``."""
        # Before the sink: it may move the weights at once.
        below = torch.bmm(slope, self.weights) if deeper else slope
        sink.weight(self, slope)
        sink.vector(self.bias_place, self._bias, slope.sum(1))
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


class Norm:
    """Layer normalisation (Ba et al. 2016), nn.LayerNorm's arithmetic."""

    def __init__(self, place: slice, bias_place: slice, epsilon: float) -> None:
        self.place, self.bias_place, self.epsilon = place, bias_place, epsilon
        self.normal: Tensor
        self.scale: Tensor

    def bind(self, values: Tensor) -> None:
        """Cut the views once."""
        self._weight, self._bias = values[:, self.place], values[:, self.bias_place]

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each row, then scale and shift."""
        variance, mean = torch.var_mean(features, dim=2, correction=0, keepdim=True)
        self.scale = (variance + self.epsilon).rsqrt()
        self.normal = (features - mean) * self.scale
        return torch.addcmul(self._bias.unsqueeze(1), self.normal, self._weight.unsqueeze(1))

    def backward(self, slope: Tensor, sink: Sink, *, deeper: bool) -> Tensor:
        """``dx = s (g - mean(g) - n mean(g n))`` with ``g = dy w``, n normalised, s the scale."""
        inner = slope * self._weight.unsqueeze(1)
        sink.vector(self.place, self._weight, (slope * self.normal).sum(1))
        sink.vector(self.bias_place, self._bias, slope.sum(1))
        correlation = (inner * self.normal).mean(2, keepdim=True)
        return self.scale * (inner - inner.mean(2, keepdim=True) - self.normal * correlation)


class Dropout:
    """Dropout whose masks come from each client's own generator, as `SeededDropout` draws them.

    Attributes:
        generators: one per client, in the order of the rows of the stack; none in evaluation.
        counts: number of real rows of each client in the batch; the rest is padding.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.generators: list[torch.Generator] = []
        self.counts: list[int] = []
        self.mask: Tensor | None = None

    def bind(self, values: Tensor) -> None:
        """It has no parameters."""

    def forward(self, features: Tensor) -> Tensor:
        """Zero entries and scale the rest, in training only."""
        self.mask = None
        if not self.generators:
            return features
        mask = torch.zeros(features.shape)
        for slab, count, generator in zip(mask, self.counts, self.generators, strict=False):
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
        weight = layout.slices.get(f"{prefix}{index}.weight", slice(0, 0))
        bias = layout.slices.get(f"{prefix}{index}.bias", slice(0, 0))
        if isinstance(layer, nn.Linear):
            layers.append(Dense(weight, bias, (layer.out_features, layer.in_features)))
        elif isinstance(layer, nn.LayerNorm):
            layers.append(Norm(weight, bias, layer.eps))
        elif isinstance(layer, SeededDropout):
            layers.append(Dropout(layer.rate))
        elif type(layer) in ACTIVATIONS:
            layers.append(ACTIVATIONS[type(layer)]())
        else:
            raise NotImplementedError(type(layer).__name__)
    return layers
