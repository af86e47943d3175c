"""Optimiser steps on flat parameter buffers.

The arithmetic is torch.optim's, to the last bits (tests compare the two); a step here is a handful
of vector operations on a whole segment, and importing torch.optim, which costs seconds, is not
needed. A segment is a contiguous part of the buffer that always steps together: the trunk, or one
head. A head whose task has no label in a batch takes no step, so its momentum and its step count
stay where they were, exactly as torch.optim treats parameters without a gradient.
"""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from common.experiment import Training


class FlatOptimiser(Protocol):
    """Steps segments of a flat buffer; made anew for each round."""

    def step(self, places: Iterable[slice]) -> None:
        """Move the parameters at these places against their gradients."""


class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD (dampening 0).

    ``v <- momentum * v + g + decay * w``, ``w <- w - lr * v`` (Sutskever et al. 2013, in the form
    documented for torch.optim.SGD).
    """

    def __init__(self, values: Tensor, gradients: Tensor, settings: Training) -> None:
        self.values, self.gradients, self.settings = values, gradients, settings
        self.velocity: dict[int, Tensor] = {}  # start of segment -> v, once it has stepped

    def step(self, places: Iterable[slice]) -> None:
        """Move the parameters at these places against their gradients."""
        settings = self.settings
        for place in places:
            weight, slope = self.values[place], self.gradients[place]
            if settings.weight_decay:
                slope = slope.add(weight, alpha=settings.weight_decay)
            if settings.momentum:
                if place.start in self.velocity:
                    self.velocity[place.start].mul_(settings.momentum).add_(slope)
                else:
                    self.velocity[place.start] = slope.clone()
                slope = self.velocity[place.start]
            weight.sub_(slope, alpha=settings.lr)


class Adam:
    """Adam (Kingma & Ba 2015, Algorithm 1) and AdamW (Loshchilov & Hutter 2019, Algorithm 2).

    The published defaults: beta1 0.9, beta2 0.999, epsilon 1e-8. With `decoupled` the weight decay
    is AdamW's ``w <- w - lr * decay * w``; else it is added to the gradient.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(
        self, values: Tensor, gradients: Tensor, settings: Training, *, decoupled: bool
    ) -> None:
        self.values, self.gradients, self.settings = values, gradients, settings
        self.decoupled = decoupled
        self.moments = torch.zeros(2, len(values), dtype=values.dtype, device=values.device)
        self.steps: dict[int, int] = {}  # start of segment -> steps it has taken

    def step(self, places: Iterable[slice]) -> None:
        """Move the parameters at these places against their gradients."""
        lr, decay = self.settings.lr, self.settings.weight_decay
        for place in places:
            count = self.steps[place.start] = self.steps.get(place.start, 0) + 1
            weight, slope = self.values[place], self.gradients[place]
            if decay and self.decoupled:
                weight.mul_(1 - lr * decay)
            elif decay:
                slope = slope.add(weight, alpha=decay)
            first, second = self.moments[0, place], self.moments[1, place]
            first.lerp_(slope, 1 - self.BETA1)
            second.mul_(self.BETA2).addcmul_(slope, slope, value=1 - self.BETA2)
            root = (second.sqrt() / math.sqrt(1 - self.BETA2**count)).add_(self.EPSILON)
            weight.addcdiv_(first, root, value=-lr / (1 - self.BETA1**count))


def make_optimiser(values: Tensor, gradients: Tensor, settings: Training) -> FlatOptimiser:
    """Make the optimiser that the experiment names, with fresh state."""
    if settings.optimiser == "sgd":
        return SGD(values, gradients, settings)
    return Adam(values, gradients, settings, decoupled=settings.optimiser == "adamw")
