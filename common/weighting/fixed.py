"""Weights that nothing changes: equal, or the tasks' own, as they come with the round."""

from typing import ClassVar

import torch
from torch import Tensor

from common.weighting.weighting import State, Weighting


class Fixed(Weighting):
    """``w_t = 1`` times the weight that comes with the round, as for every weighting."""

    needs_positive: ClassVar[bool] = False

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Return ones."""
        return torch.ones_like(losses)
