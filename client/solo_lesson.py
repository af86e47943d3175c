"""One client's lesson: its batches, dropout and loss weighting in one message."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from client.cohort import LossSums
from client.phases import Phase
from common.dataset import ClientData
from common.weighting.balance import Memory

if TYPE_CHECKING:
    from client.training import Trainer


class SoloLesson:
    """Trains rows of one client in one message; see `client.learners.Lesson`."""

    def __init__(
        self,
        trainer: "Trainer",
        data: ClientData,
        weights: Mapping[str, float],
        round_number: int,
        memory: Memory | None,
    ) -> None:
        self.trainer, self.data, self.weights, self.round = trainer, data, weights, round_number
        self.generator = trainer.generator(data.name, round_number)
        self.draws = trainer.draws([data.name], round_number)
        self.balance = trainer.balance(weights, memory or {})

    def train(self, values: Tensor, phase: Phase) -> LossSums:
        """Train one row, [1, P]."""
        trainer, generator = self.trainer, self.generator
        if trainer.cohorts is None:
            with trainer.lent(values):
                return trainer.teach(
                    self.data, self.weights, self.balance, self.round, generator, phase, self.draws
                )
        cohort = trainer.alone(trainer.cohorts.model, self.data)
        generators = [] if generator is None else [generator]
        return trainer.cohorts.train(
            cohort, values, self.weights, self.round, generators, self.balance, phase, self.draws
        )
