"""GradNorm: weights under which tasks pull alike, slow ones harder.

Chen, Badrinarayanan, Lee & Rabinovich, "GradNorm: Gradient normalization for adaptive loss
balancing in deep multitask networks", ICML 2018, eq. 1 and 2 and Algorithm 1.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.experiment import Experiment
from common.settings import Settings
from common.weighting.weighting import TINY, Learned, State, Step, Weighting, mean, total


class GradNorm(Weighting):
    """Weights are learned so that ``w_t |g_t|`` nears ``mean(w |g|) * r_t^alpha``.

    ``r_t`` is the task's ``L_t / L_t(0)`` relative to the tasks' mean. Weights sum to the number of
    present tasks.
    """

    class Options(Settings):
        """Options of GradNorm."""

        alpha: float = Field(
            1.5, ge=0, description="Pull on tasks that learn slowly; 1.5 in the paper's NYUv2."
        )
        lr: float = Field(0.025, gt=0, description="Step size of the weights; 0.025 in the paper.")
        optimiser: Literal["adam", "sgd"] = Field(
            "adam",
            description="What learns the weights: sgd steps in proportion to the gradients' norms, "
            "and jumps to and fro where these are large.",
        )
        layer: Literal["last", "trunk"] = Field(
            "last",
            description="Whose gradients are balanced: those of the last shared layer, which costs "
            "little, or of the whole trunk, as always where trunk.sharing is not 'hard'.",
        )

    STATE: ClassVar = {"weight": 1.0, "initial-loss": 0.0, **Learned.MOMENTS}  # 0: not seen yet

    needs_trunk: ClassVar[bool] = True

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        self.needs_norms = options.layer

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Share out the learned weights among the present tasks."""
        return state["weight"] / mean(state["weight"], taught)

    def learn(self, step: Step, state: State) -> dict[str, Tensor]:
        """Step against ``d/dw_t sum |w_t |g_t| - target_t|``, targets constant (eq. 2)."""
        if step.norms is None:
            raise RuntimeError("GradNorm asked for gradient norms")
        taught, norms = step.taught, step.norms
        start = torch.where(state["initial-loss"] > 0, state["initial-loss"], step.losses)
        ratio = step.losses / start.clamp(min=TINY)
        rate = ratio / mean(ratio, taught).clamp(min=TINY)
        pulls = step.weights * norms
        target = mean(pulls, taught) * rate.pow(self.options.alpha)
        slope = (pulls - target).sign() * norms
        adam = self.options.optimiser == "adam"
        moved, moments = Learned.step(step.weights, slope, state, self.options.lr, adam=adam)
        moved = moved.clamp(min=TINY)  # a weight below 0 would train its task backwards
        # The present tasks keep their share of the sum, so that absent ones keep theirs.
        return {
            "weight": moved * total(state["weight"], taught) / total(moved, taught),
            "initial-loss": start,
            **moments,
        }
