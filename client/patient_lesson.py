"""A lesson whose clients may stop before all epochs are done, by their own validation rows."""

from abc import ABC, abstractmethod
from dataclasses import replace

import numpy as np
from torch import Tensor

from client.batches import Index
from client.cohort import LossSums
from client.early_stopping import Losses, Stopping
from client.phases import Phase


class PatientLesson(ABC):
    """Ends each phase as ``training.patience`` says; see `client.learners.Lesson`.

    A phase with an optimiser of its own (`Phase.make`) does all of its epochs.

    Args:
        patience: epochs without a lower loss after which a client stops; None to do all.
        clients: K.
    """

    def __init__(self, patience: int | None, clients: int) -> None:
        self.patience = patience
        self.epochs: Index = np.zeros(clients, np.int64)

    def train(self, values: Tensor, phase: Phase) -> LossSums:
        """Train rows [K, P] in place; returns task -> [K, 2], summed loss and labelled rows."""
        if self.patience is None or phase.make is not None:
            return self.train_phase(values, phase)
        stopping = Stopping(self.judge, self.patience)
        sums = self.train_phase(values, replace(phase, stopping=stopping))
        self.epochs = self.epochs + stopping.done
        return sums

    @abstractmethod
    def train_phase(self, values: Tensor, phase: Phase) -> LossSums:
        """Train rows [K, P] in place for a phase, and stop clients where it says so."""

    @abstractmethod
    def judge(self, values: Tensor) -> Losses:
        """Compute the loss of parameters [K, P] on each client's own validation rows."""
