"""Random loss weighting: fresh weights at every step.

Lin, Ye, Zhang & Tsang, "Reasonable effectiveness of random weighting", TMLR 2022: a standard normal
draw per task, put through a softmax. All clients draw alike, from the run's seed.
"""

from typing import ClassVar

from torch import Tensor

from common.weighting.weighting import State, Weighting, softmax


class RandomWeights(Weighting):
    """Weights sum to 1, as in the paper."""

    needs_positive: ClassVar[bool] = False
    needs_noise: ClassVar[bool] = True

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Put the step's draw through a softmax over the present tasks."""
        if noise is None:
            raise RuntimeError("random loss weighting asked for noise")
        return softmax(noise.expand_as(losses), taught)
