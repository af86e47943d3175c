"""Weights that nothing changes: equal, or the tasks' own, as they come with the round."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.experiment import Experiment
from common.weighting.weighting import State, Weighting


class Fixed(Weighting):
    """``w_t = 1`` times the weight that comes with the round, as for every weighting."""

    needs_positive: ClassVar[bool] = False

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """One weight must be above 0."""
        if not any(experiment.task_weights().values()):
            yield "tasks: every weight is 0, nothing would be learned; give one a weight"

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Return ones."""
        return torch.ones_like(losses)
