"""Scales of single losses, so that a cross-entropy and a squared error in dollars can meet.

A scaling comes before the weighting: it maps each loss L_t to a value f(L_t), and the weighting
sees the values. What is remembered of a task follows ``loss.scope`` like a weighting's own state.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from common.weighting.weighting import TINY

MEMORY = 0.9  # of the running mean, per step


@dataclass(frozen=True)
class Scaling:
    """One way to scale.

    Attributes:
        apply: (losses [K, T], scale [K, T]) -> values ``f(L_t)`` and slopes ``f'(L_t)``, [K, T]
            both.
        observe: (losses [K, T], scale [K, T]) -> the scale that these losses use; None where there
            is none to remember. A scale of 0 was not seen yet.
        positive: whether values stay above 0.
    """

    apply: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    observe: Callable[[Tensor, Tensor], Tensor] | None = None
    positive: bool = True


def _keep(losses: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return losses, torch.ones_like(losses)


def _divide(losses: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``f(L) = L / scale``; the scale counts as a constant."""
    below = scale.clamp(min=TINY)
    return losses / below, 1 / below


def _logarithm(losses: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``f(L) = log L`` (Lin et al., Dual-balancing for multi-task learning, 2023, section 3.1)."""
    above = losses.clamp(min=TINY)
    return above.log(), 1 / above


def _first(losses: Tensor, scale: Tensor) -> Tensor:
    """``L(0)``, the first that was seen (the loss ratio of Chen et al., GradNorm, 2018)."""
    return torch.where(scale > 0, scale, losses)


def _running_mean(losses: Tensor, scale: Tensor) -> Tensor:
    """``m <- 0.9 m + 0.1 L``, this step's loss included."""
    return torch.where(scale > 0, torch.lerp(losses, scale, MEMORY), losses)


SCALINGS: dict[str, Scaling] = {
    "none": Scaling(_keep),
    "initial": Scaling(_divide, _first),
    "running-mean": Scaling(_divide, _running_mean),
    "log": Scaling(_logarithm, positive=False),
}
