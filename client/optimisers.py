"""Optimiser steps on rows of parameters, one row per client.

The arithmetic is torch.optim's, to the last bits (tests compare the two); a step here is a handful
of operations on a slice of columns, and importing torch.optim, which costs seconds, is not needed.
A head whose task has no label in a client's batch takes no step there, so its momentum and its step
count stay where they were, exactly as torch.optim treats parameters without a gradient.

Each part has its own rates of regularisation, as torch.optim's parameter groups have: a weight
decay ``d`` and an L1 rate ``a``, for weights and biases alike. The gradient of
``L + d/2 |w|^2 + a |w|_1`` is taken to be ``g + d w + a sign(w)``, where sign(0) = 0 is one of the
subgradients at 0; AdamW keeps its decay apart from the gradient.

``training.clip-norm`` bounds a client's gradient g over all that steps, as
torch.nn.utils.clip_grad_norm_ does (Pascanu et al., "On the difficulty of training recurrent neural
networks", ICML 2013, Algorithm 1), before penalties and an algorithm's correction are added.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from client.flat import TRUNK, FlatLayout, merge_neighbours
from client.rates import Factors, StepRates
from client.stacked_layers import Dense
from common.experiment import Experiment
from common.methods import make_options
from common.optimisers.table import OPTIMISERS
from common.sections.training import STACKED_OPTIMISERS, Training


@dataclass(frozen=True)
class Part:
    """Columns that step together: the trunk, one task's head, or several that are treated alike.

    Attributes:
        name: `TRUNK` or the task's name.
        places: its columns.
        active: bool [K], the clients for which it steps; None for all.
        decay: its weight decay.
        l1: its L1 rate.
    """

    name: str
    places: Sequence[slice]
    active: Tensor | None = None
    decay: float = 0.0
    l1: float = 0.0


def make_parts(layout: FlatLayout, experiment: Experiment) -> dict[str, Part]:
    """Make the parts of a model, each with its own rates or else with those of ``training``."""
    training, parts = experiment.training, {}
    for name, places in layout.segments.items():
        own = experiment.trunk if name == TRUNK else experiment.tasks[name]
        decay = training.weight_decay if own.weight_decay is None else own.weight_decay
        l1 = training.l1 if own.l1 is None else own.l1
        parts[name] = Part(name, places, decay=decay, l1=l1)
    return parts


def merge_parts(parts: Iterable[Part]) -> list[Part]:
    """Join parts with the same rates, so that a step over them takes fewer operations.

    >>> alike = Part("a", [slice(0, 2)]), Part("b", [slice(2, 3)])
    >>> [part.places for part in merge_parts([*alike, Part("c", [slice(3, 4)], l1=0.1)])]
    [[slice(0, 3, None)], [slice(3, 4, None)]]
    """
    merged: dict[tuple[float, float], Part] = {}
    for part in parts:
        rates = part.decay, part.l1
        first = merged.get(rates, replace(part, places=()))
        places = merge_neighbours([*first.places, *part.places])
        merged[rates] = replace(first, places=places)
    return list(merged.values())


class Optimiser(Protocol):
    """Takes gradients, then steps; made anew for each round.

    Attributes:
        steps_late: whether `step` has anything to do after the gradients were taken.
    """

    steps_late: bool

    def weight(self, layer: Dense, slope: Tensor) -> None:
        """Take a weight's gradient ``slope^T inputs``, with the layer's inputs."""

    def vector(self, place: slice, vector: Tensor, rows: Tensor) -> None:
        """Take what adds up, over rows [K, B, width], to the gradient of a vector [K, width]."""

    def step(self, rows: int, parts: Sequence[Part]) -> None:
        """Move the first `rows` clients' parameters of these parts against their gradients."""


class PlainSGD:
    """``w <- w - lr * g``, each layer as soon as its gradient is known.

    The product that makes a weight's gradient subtracts it too, so no gradient is ever stored. A
    gradient of 0 moves nothing: parts that are not active need no care.
    """

    steps_late = False

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def weight(self, layer: Dense, slope: Tensor) -> None:
        """Subtract ``lr * slope^T inputs``."""
        layer.weights.baddbmm_(slope.transpose(1, 2), layer.inputs, alpha=-self.lr)

    def vector(self, place: slice, vector: Tensor, rows: Tensor) -> None:
        """Subtract ``lr`` times the gradient."""
        vector.sub_(rows.sum(1), alpha=self.lr)

    def step(self, rows: int, parts: Sequence[Part]) -> None:
        """Nothing is left to do."""


@dataclass(frozen=True)
class Correction:
    """What an algorithm makes of every gradient: ``g <- scale * g + pull * (w - anchor) + offset``.

    Attributes:
        scale: [P], the factor of each column; None for 1.
        pull: [P], how strongly each column is drawn to the anchor; None for not at all.
        anchor: [K, P].
        offset: [K, P], added as it is; None for nothing.
    """

    scale: Tensor | None = None
    pull: Tensor | None = None
    anchor: Tensor | None = None
    offset: Tensor | None = None

    def apply(self, slope: Tensor, weight: Tensor, rows: int, place: slice) -> Tensor:
        """Correct the gradient of the first rows' parameters at a place."""
        if self.scale is not None:
            slope = slope * self.scale[place]
        if self.pull is not None and self.anchor is not None:
            slope = torch.addcmul(slope, weight - self.anchor[:rows, place], self.pull[place])
        if self.offset is not None:
            slope = slope + self.offset[:rows, place]
        return slope


class GradientStore:
    """Keeps the gradients for optimisers that need them whole.

    Attributes:
        correction: what is made of every gradient.
        rates: each step's learning rate; None where all are that of the settings.
    """

    steps_late = True
    correction: Correction | None = None
    rates: StepRates | None = None

    def __init__(self, values: Tensor, gradients: Tensor | None = None) -> None:
        self.values = values
        self.gradients = torch.zeros_like(values) if gradients is None else gradients

    def weight(self, layer: Dense, slope: Tensor) -> None:
        """Store ``slope^T inputs``."""
        store = self.gradients[: len(slope), layer.place].view(len(slope), *layer.shape)
        store.baddbmm_(slope.transpose(1, 2), layer.inputs, beta=0)

    def vector(self, place: slice, vector: Tensor, rows: Tensor) -> None:
        """Store the gradient."""
        self.gradients[: len(rows), place] = rows.sum(1)

    def slope(self, rows: int, place: slice, decay: float, l1: float) -> Tensor:
        """Get the gradient at a place, with what an L2 and an L1 term add to it."""
        weight, slope = self.values[:rows, place], self.gradients[:rows, place]
        if decay:
            slope = slope.add(weight, alpha=decay)
        if l1:
            slope = slope.add(weight.sign(), alpha=l1)
        if self.correction is not None:
            slope = self.correction.apply(slope, weight, rows, place)
        return slope

    def begin(self, rows: int, parts: Sequence[Part], settings: Training) -> float | Factors:
        """Begin a step: clip the gradients of what steps, and tell the learning rate.

        Returns:
            One rate, or [rows].
        """
        if settings.clip_norm is not None:
            clip_gradients(self.gradients[:rows], parts, settings.clip_norm)
        return settings.lr if self.rates is None else self.rates.next(rows, settings.lr)


def clip_gradients(gradients: Tensor, parts: Sequence[Part], max_norm: float) -> None:
    """Multiply each client's gradient, [K, P], by ``min(1, C / (|g| + 1e-6))``, in place.

    Args:
        gradients: of the clients that step; 0 where a part is not active for one of them.
        parts: what steps; the norm is that over all their columns.
        max_norm: C.
    """
    places = [place for part in parts for place in part.places]
    squares = gradients.new_zeros(len(gradients))
    for place in places:
        squares += gradients[:, place].square().sum(1)
    factors = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1).unsqueeze(1)
    for place in places:
        gradients[:, place] *= factors


def column(numbers: float | Factors, like: Tensor) -> float | Tensor:
    """Lay clients' numbers, [K], beside their parameters: [K, 1]; one number stays one."""
    if isinstance(numbers, float):
        return numbers
    return torch.from_numpy(numbers[:, None]).to(like)


class SGD(GradientStore):
    """Stochastic gradient descent with momentum, as torch.optim.SGD.

    ``v <- momentum * v + (1 - dampening) * g``, ``w <- w - lr * v`` with ``g`` the gradient and its
    penalties; a part's first g is not dampened. With ``nesterov`` the step is ``g + momentum * v``
    (Sutskever et al. 2013, in the form documented for torch.optim.SGD).
    """

    def __init__(self, values: Tensor, settings: Training, gradients: Tensor | None = None) -> None:
        super().__init__(values, gradients)
        self.settings = settings
        self.velocity = torch.zeros_like(values) if settings.momentum else values
        options = make_options(OPTIMISERS, settings.optimiser, settings.optimiser_options)
        self.nesterov, self.dampening = options.nesterov, options.dampening
        self.moved: dict[str, Tensor] = {}  # part -> bool [K, 1], who has stepped; for dampening

    def step(self, rows: int, parts: Sequence[Part]) -> None:
        """Move the first `rows` clients' parameters of these parts against their gradients."""
        settings = self.settings
        rate = column(self.begin(rows, parts, settings), self.values)
        for part in parts:
            share = self._share(rows, part) if self.dampening else None
            for place in part.places:
                weight = self.values[:rows, place]
                slope = self.slope(rows, place, part.decay, part.l1)
                if settings.momentum:
                    speed = self.velocity[:rows, place]
                    added = slope if share is None else slope * share
                    keep_state(speed, torch.add(added, speed, alpha=settings.momentum), part)
                    slope = slope.add(speed, alpha=settings.momentum) if self.nesterov else speed
                if part.active is not None:
                    slope = slope * part.active.unsqueeze(1)
                if isinstance(rate, Tensor):
                    weight.sub_(slope * rate)
                else:
                    weight.sub_(slope, alpha=rate)

    def _share(self, rows: int, part: Part) -> Tensor:
        """Tell how much of a gradient is taken, [rows, 1]: all of the first, then less."""
        if part.name not in self.moved:
            nobody = torch.zeros(len(self.values), 1, dtype=torch.bool)
            self.moved[part.name] = nobody.to(self.values.device)
        moved = self.moved[part.name][:rows]
        share: Tensor = 1 - self.dampening * moved.to(self.values.dtype)
        moved |= True if part.active is None else part.active.unsqueeze(1)
        return share


def keep_state(state: Tensor, changed: Tensor, part: Part) -> Tensor:
    """Write a state's new values, for active clients only; returns the state."""
    if part.active is not None:
        changed = torch.where(part.active.unsqueeze(1), changed, state)
    return state.copy_(changed)


def make_optimiser(
    values: Tensor,
    settings: Training,
    parts: Collection[Part],
    gradients: Tensor | None = None,
    correction: Correction | None = None,
    *,
    partly: bool = False,
    rates: StepRates | None = None,
) -> Optimiser:
    """Make the optimiser that the experiment names, with fresh state.

    Args:
        values: [K, P], moved in place.
        settings: optimiser, its options, lr, momentum, clip_norm.
        parts: all that may be asked to step.
        gradients: [K, P] where autograd fills them in; else they are taken by `weight`, `vector`.
        correction: what is made of every gradient.
        partly: whether there are parameters that must not move, those of no part.
        rates: each step's learning rate; None where all are that of the settings.
    """
    store: GradientStore
    if settings.optimiser not in STACKED_OPTIMISERS:
        from client.torch_optimisers import TorchOptimiser  # torch.optim takes seconds to import

        if gradients is None or len(values) != 1:
            raise RuntimeError(f"'{settings.optimiser}' steps for one client, by autograd")
        store = TorchOptimiser(values, settings, gradients, parts)
    elif settings.optimiser != "sgd":
        from client.adam import Adam  # it builds on this module

        decoupled = settings.optimiser == "adamw"
        store = Adam(values, settings, gradients, decoupled=decoupled)
    else:
        penalised = any(part.decay or part.l1 for part in parts)
        plain = not (settings.momentum or penalised or correction or partly)
        alike = settings.clip_norm is None and rates is None
        if gradients is None and plain and alike:
            return PlainSGD(settings.lr)
        store = SGD(values, settings, gradients)
    store.correction, store.rates = correction, rates
    return store
