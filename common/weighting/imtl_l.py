"""IMTL-L: a learned scale per task that brings all losses to 1.

Liu et al., "Towards impartial multi-task learning", ICLR 2021, section 3.2: the objective
``sum_t exp(s_t) L_t - s_t``, whose minimum in s has ``exp(s_t) L_t = 1``.
"""

from typing import ClassVar

from torch import Tensor

from common.weighting.weighting import Learned, LearnedOptions, State, Step, Weighting


class ImpartialLosses(Weighting):
    """``w_t = exp(s_t)``; s_t is learned by gradient."""

    class Options(LearnedOptions):
        """Options of IMTL-L."""

    STATE: ClassVar = {"log-scale": 0.0, **Learned.MOMENTS}

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Turn log scales into weights."""
        return state["log-scale"].exp()

    def learn(self, step: Step, state: State) -> dict[str, Tensor]:
        """Step s against ``d/ds = exp(s) L - 1``."""
        slope = step.weights * step.losses - 1
        scale, moments = Learned.step(
            state["log-scale"], slope, state, self.options.lr, adam=self.options.optimiser == "adam"
        )
        return {"log-scale": scale, **moments}
