"""Uncertainty weighting: the noise that each task is found to have.

Kendall, Gal & Cipolla, "Multi-task learning using uncertainty to weigh losses", CVPR 2018, eq. 7
and 10. With ``s = log sigma^2`` a task adds ``exp(-s) L / 2 + s / 2`` to the objective where its
loss is a squared error, ``exp(-s) L + s / 2`` where it is a cross-entropy.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from common.experiment import Experiment
from common.weighting.weighting import Learned, LearnedOptions, State, Step, Weighting


class Uncertainty(Weighting):
    """``w_t = exp(-s_t) / 2`` for squared errors, ``exp(-s_t)`` else; s_t is learned."""

    class Options(LearnedOptions):
        """Options of uncertainty weighting."""

    STATE: ClassVar = {"log-variance": 0.0, **Learned.MOMENTS}

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        kinds = [task.kind for task in experiment.tasks.values()]
        self.factors = torch.tensor([0.5 if kind == "regression" else 1.0 for kind in kinds])

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Turn log variances into weights."""
        return self.factors.to(losses) * (-state["log-variance"]).exp()

    def learn(self, step: Step, state: State) -> dict[str, Tensor]:
        """Step s against ``d/ds = 1/2 - w L``."""
        slope = 0.5 - step.weights * step.losses
        variance, moments = Learned.step(
            state["log-variance"],
            slope,
            state,
            self.options.lr,
            adam=self.options.optimiser == "adam",
        )
        return {"log-variance": variance, **moments}
