"""A chunk of clients' lesson: their batches, dropout and loss weighting in one message."""

from typing import TYPE_CHECKING

from torch import Tensor

from client.batches import Index
from client.cohort import Cohort, LossSums
from client.early_stopping import Losses, weigh_all_losses
from client.patient_lesson import PatientLesson
from client.phases import Phase
from common.seeding import torch_generator
from common.weighting.balance import Balance
from common.wire import Instruction

if TYPE_CHECKING:
    from simulations.residents import Residents


class ChunkLesson(PatientLesson):
    """Trains rows of one chunk of clients in one message; see `client.learners.Lesson`."""

    def __init__(self, residents: "Residents", members: Index, instruction: Instruction) -> None:
        super().__init__(residents.experiment.training.patience, clients=len(members))
        self.residents, self.round = residents, instruction.round
        self.generators = []
        names = list(residents.place)
        self.draws = residents.trainer.draws([names[m] for m in members], self.round)
        if residents.cohorts.model.dropouts:
            seed, number = residents.experiment.seed, self.round
            self.generators = [torch_generator(seed, "dropout", names[m], number) for m in members]
        self.cohort = Cohort(
            residents.train_store,
            members,
            residents.keys[members],
            [residents.patterns[m] for m in members],
        )
        self.weights, rules = instruction.weights or {}, residents.trainer.rules
        self.balance = None
        if not rules.is_fixed:
            state = residents.remembered(members, instruction)
            self.balance = Balance(rules, state, self.weights)

    def judge(self, values: Tensor) -> Losses:
        """Compute the losses on each client's own validation rows."""
        store = self.residents.stores["validation"]
        found = self.residents.cohorts.losses(store, self.cohort.members, values)
        return weigh_all_losses(found, self.weights, len(values))

    def train_phase(self, values: Tensor, phase: Phase) -> LossSums:
        """Train rows [K, P] side by side."""
        return self.residents.cohorts.train(
            self.cohort,
            values,
            self.weights,
            self.round,
            self.generators,
            self.balance,
            phase,
            self.draws,
        )
