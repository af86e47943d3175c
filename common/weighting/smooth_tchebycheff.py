"""Smooth Tchebycheff scalarisation: nearly only the worst task counts.

Lin, Zhang, Yang, Liu, Wang & Zhang, "Smooth Tchebycheff scalarization for multi-objective
optimization", ICML 2024, eq. 6, as its authors use it for multi-task learning:
``T mu log sum_t exp(lambda_t log(L_t / N_t) / mu)`` with N_t the task's mean loss in its first
round; in that round ``sum_t log L_t``. The preferences lambda have mean 1 over the present tasks.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from common.experiment import Experiment
from common.settings import Settings
from common.weighting.preference import Preference, preference_problems, read_preference
from common.weighting.weighting import TINY, State, Weighting, count, mean, softmax


class SmoothTchebycheff(Weighting):
    """``w_t = n softmax(lambda log(L / N) / mu)_t lambda_t / L_t`` over n present tasks."""

    class Options(Settings):
        """Options of smooth Tchebycheff scalarisation."""

        mu: float = Field(1.0, ge=0.001, description="Smoothness: 0 would be the maximum itself.")
        preference: Preference = None

    STATE: ClassVar = {"first-loss": 0.0}  # mean of a task's first round; 0 where not seen yet
    scales_rounds: ClassVar[bool] = True

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        self.preference = read_preference(options.preference, len(experiment.tasks))

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """A preference has one number per task."""
        yield from super().find_problems(options, experiment)
        yield from preference_problems(options.preference, experiment)

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Differentiate the scalarisation."""
        above, first = losses.clamp(min=TINY), state["first-loss"]
        preference = self.preference.to(losses).expand_as(losses)
        preference = preference / mean(preference, taught).clamp(min=TINY)
        seen = first > 0
        height = preference * (above / torch.where(seen, first, above)).log() / self.options.mu
        smooth = count(taught) * softmax(height, taught) * preference / above
        # The first round of the federation, in which no task has a first loss yet.
        warm = (seen & taught).any(-1, keepdim=True)
        return torch.where(warm, smooth, 1 / above)

    def end_round(self, means: Tensor, taught: Tensor, state: State) -> dict[str, Tensor]:
        """Remember a task's first round."""
        return {"first-loss": torch.where(state["first-loss"] > 0, state["first-loss"], means)}
