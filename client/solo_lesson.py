"""One client's lesson: its batches, dropout and loss weighting in one message."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from client.cohort import LossSums
from client.early_stopping import Losses, weigh_all_losses, weigh_losses
from client.patient_lesson import PatientLesson
from client.phases import Phase
from common.dataset import ClientData
from common.weighting.balance import Memory

if TYPE_CHECKING:
    from client.training import Trainer


class SoloLesson(PatientLesson):
    """Trains rows of one client in one message; see `client.learners.Lesson`."""

    def __init__(
        self,
        trainer: "Trainer",
        data: ClientData,
        weights: Mapping[str, float],
        round_number: int,
        memory: Memory | None,
    ) -> None:
        super().__init__(trainer.experiment.training.patience, clients=1)
        self.trainer, self.data, self.weights, self.round = trainer, data, weights, round_number
        self.generator = trainer.generator(data.name, round_number)
        self.draws = trainer.draws([data.name], round_number)
        self.balance = trainer.balance(weights, memory or {})

    def judge(self, values: Tensor) -> Losses:
        """Compute the loss on the client's own validation rows."""
        trainer = self.trainer
        if trainer.cohorts is not None and self.data.resident:
            store, member = trainer.held_out(self.data), np.zeros(1, np.int64)
            found = trainer.cohorts.losses(store, member, values)
            return weigh_all_losses(found, self.weights, 1)
        # In stretches, for a store would hold all rows.
        resting = nullcontext() if trainer.cohorts is None else trainer.cohorts.resting()
        with trainer.lent(values), resting:
            sums = trainer.evaluate(self.data, "validation", losses_only=True)
        trainer.model.train()
        return weigh_losses({task: own["loss"] for task, own in sums.items()}, self.weights)

    def train_phase(self, values: Tensor, phase: Phase) -> LossSums:
        """Train one row, [1, P]: the stacked form where the model has one, else by autograd."""
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
