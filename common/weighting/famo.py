"""FAMO: the losses fall at the same rate, learned from losses alone.

Liu, Feng, Stone & Liu, "FAMO: Fast adaptive multitask optimization", NeurIPS 2023, Algorithm 1:
with ``z = softmax(xi)``, ``w_t = c z_t / L_t`` and ``c = 1 / sum_t (z_t / L_t)``; after the step,
xi moves along the softmax's slope in ``log L_t(before) - log L_t(after)``.
"""

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from common.settings import Settings
from common.weighting.weighting import TINY, Learned, State, Step, Weighting, softmax, total


class FastAdaptive(Weighting):
    """Weights sum to 1."""

    class Options(Settings):
        """Options of FAMO."""

        lr: float = Field(0.025, gt=0, description="Step size of xi, by Adam; 0.025 in the paper.")
        weight_decay: float = Field(
            0.001, ge=0, description="Pulls xi back to 0; 0.001 in the paper's Algorithm 1."
        )

    STATE: ClassVar = {"logit": 0.0, **Learned.MOMENTS}
    needs_after: ClassVar[bool] = True

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Divide each task's share by its loss."""
        pulls = softmax(state["logit"], taught) / losses.clamp(min=TINY)
        return pulls / total(pulls, taught)

    def learn(self, step: Step, state: State) -> dict[str, Tensor]:
        """Step xi: a task whose loss fell less than the others' gains weight."""
        if step.after is None:
            raise RuntimeError("FAMO asked for the losses after the step")
        shares = softmax(state["logit"], step.taught)
        fallen = step.losses.clamp(min=TINY).log() - step.after.clamp(min=TINY).log()
        average = total(shares * fallen, step.taught)
        slope = shares * (fallen - average) + self.options.weight_decay * state["logit"]
        logit, moments = Learned.step(state["logit"], slope, state, self.options.lr, adam=True)
        return {"logit": logit, **moments}
