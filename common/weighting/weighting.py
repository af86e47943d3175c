"""What every loss weighting is, and the arithmetic over present tasks that they share.

A weighting turns the losses of K clients' batches into the weights w_t of ``L = sum_t w_t L_t``,
that is, into the derivative of its own objective in each loss. An absent task's loss is NaN: a
method that reads it instead of leaving it out shows at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.architectures.table import SHARINGS
from common.experiment import Experiment
from common.settings import Settings

State = Mapping[str, Tensor]  # name -> [K, T], a number for every client and task
TINY = 1e-8  # losses of 0 would have no logarithm


@dataclass(frozen=True)
class Step:
    """One step as a method that learns from it sees it.

    Attributes:
        losses: [K, T], scaled; NaN where absent.
        taught: bool [K, T], tasks with a label in the client's batch.
        weights: [K, T] that were used.
        norms: [K, T], norms of the losses' gradients in the layer that the method asked for; None
            unless it did.
        after: [K, T], losses on the same batch after the step; None unless the method asks.
    """

    losses: Tensor
    taught: Tensor
    weights: Tensor
    norms: Tensor | None = None
    after: Tensor | None = None


class Weighting:
    """Base of the weightings: each a class in its own file, and a line in `WEIGHTINGS`.

    Args:
        options: the method's own `Options`.
        experiment: names the tasks, in the order of the columns.

    Attributes:
        STATE: what it remembers about each task -> its value before anything was learned. The
            caller keeps it, writes it for present tasks only, and averages it under scope "global".
        needs_norms: asks for gradient norms: "last" shared layer, or the whole "trunk".
        needs_after: asks for the losses after the step.
        needs_noise: asks for a standard normal draw per task and step, the same for all clients.
        non_negative: promises that no weight is below 0.
        needs_positive: cannot weigh losses below 0, which scaling "log" makes.
        needs_trunk: looks at gradients on parameters that all tasks share.
        scales_rounds: `end_round` is told means that are scaled as the losses of `weigh` are, for
            a method that compares the two; else in the losses' own units.
    """

    class Options(Settings):
        """What ``loss.options`` may hold; nothing here."""

    STATE: ClassVar[Mapping[str, float]] = {}
    needs_norms: str | None = None
    needs_after: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = False
    non_negative: ClassVar[bool] = True
    needs_positive: ClassVar[bool] = True
    needs_trunk: ClassVar[bool] = False
    scales_rounds: ClassVar[bool] = False

    def __init__(self, options: Any, experiment: Experiment) -> None:
        self.options, self.experiment = options, experiment

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each."""
        if cls.needs_positive and experiment.loss.scaling == "log":
            yield (
                "loss.scaling must not be 'log' under loss.weighting "
                f"'{experiment.loss.weighting}', which cannot weigh losses below 0; choose "
                "'initial' or 'running-mean'"
            )
        sharing = experiment.trunk.sharing
        if cls.needs_trunk and not SHARINGS[sharing].has_common_parts:
            yield (
                f"loss.weighting '{experiment.loss.weighting}' needs parameters that all tasks "
                f"share, got trunk.sharing '{sharing}', which has none; choose another of the two"
            )
        elif cls.needs_trunk and not experiment.trunk.has_layers:
            yield (
                f"loss.weighting '{experiment.loss.weighting}' needs parameters that all tasks "
                "share, got trunk.widths = []; give the trunk a layer"
            )

    @property
    def initial(self) -> dict[str, float]:
        """`STATE` as far as these options need it: plain gradient descent has no moments."""
        by_adam = getattr(self.options, "optimiser", "adam") == "adam"
        needed = self.STATE.items()
        return {name: value for name, value in needed if by_adam or name not in Learned.MOMENTS}

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Compute the weights of one step, [K, T]; those of absent tasks are not looked at.

        Args:
            losses: [K, T], scaled; NaN where absent.
            taught: bool [K, T].
            state: as `STATE` says.
            noise: [T] where the method needs it.
        """
        raise NotImplementedError

    def learn(self, step: Step, state: State) -> dict[str, Tensor]:
        """Return what the state becomes after a step, [K, T] each; here it stays."""
        return {}

    def end_round(self, means: Tensor, taught: Tensor, state: State) -> dict[str, Tensor]:
        """Return what the state becomes after a client's round; here it stays.

        Args:
            means: [K, T], mean training loss of the round, see `scales_rounds`; NaN where absent.
            taught: bool [K, T], tasks that the round taught.
            state: as `STATE` says.
        """
        return {}


def count(taught: Tensor) -> Tensor:
    """Count the present tasks, [K, 1]; at least 1."""
    return taught.sum(-1, keepdim=True).clamp(min=1)


def total(values: Tensor, taught: Tensor) -> Tensor:
    """Add up over the present tasks, [K, 1]."""
    return torch.where(taught, values, 0).sum(-1, keepdim=True)


def mean(values: Tensor, taught: Tensor) -> Tensor:
    """Average over the present tasks, [K, 1]."""
    return total(values, taught) / count(taught)


def softmax(values: Tensor, taught: Tensor) -> Tensor:
    """Softmax over the present tasks, [K, T]; 0 for the others.

    >>> softmax(torch.tensor([0.0, float("nan"), 0.0]), torch.tensor([True, False, True]))
    tensor([0.5000, 0.0000, 0.5000])
    """
    shares = torch.where(taught, values, -torch.inf).softmax(-1)
    return torch.where(taught, shares, 0)


class LearnedOptions(Settings):
    """Options of a method whose numbers s are learned by gradient."""

    lr: float = Field(
        0.025, gt=0, description="Step size of s; open in the paper, this one is ours."
    )
    optimiser: Literal["adam", "sgd"] = Field(
        "adam", description="What learns s; sgd steps in proportion to the loss."
    )


class Learned:
    """Steps of Adam or plain gradient descent on one number per task, as part of a `State`.

    Kingma & Ba, "Adam", ICLR 2015, Algorithm 1. Its moments are state like the number itself.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
    MOMENTS: ClassVar[Mapping[str, float]] = {"first": 0.0, "second": 0.0, "steps": 0.0}

    @classmethod
    def step(
        cls, values: Tensor, gradient: Tensor, state: State, lr: float, *, adam: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the values after a step against the gradient, and the moments."""
        if not adam:
            return values - lr * gradient, {}
        first = torch.lerp(state["first"], gradient, 1 - cls.BETA1)
        second = torch.lerp(state["second"], gradient.square(), 1 - cls.BETA2)
        steps = state["steps"] + 1
        size = first / (1 - cls.BETA1**steps)
        root = (second / (1 - cls.BETA2**steps)).sqrt() + cls.EPSILON
        return values - lr * size / root, {"first": first, "second": second, "steps": steps}
