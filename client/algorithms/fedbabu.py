"""Heads that stand still until the end."""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from client.algorithms.algorithm import LocalAlgorithm
from client.learners import Learners
from common.experiment import Experiment
from common.settings import Settings


class FedBABU(LocalAlgorithm):
    """The trunk trains under the initial heads, the same at every client; heads are fitted last.

    Oh et al., "FedBABU: toward enhanced representation for federated image classification", ICLR
    2022, Algorithm 1 and section 4.2. An evaluation fits a copy of the heads on the client's
    training rows; what the last one fitted is kept. The paper also fine-tunes the whole model;
    here the trunk stays as it is.
    """

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        fit_epochs: int = Field(
            5, ge=1, description="Epochs in which heads are fitted before they are evaluated."
        )

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Heads that never train have no need to travel."""
        if experiment.federation.heads == "per-task":
            yield (
                "federation.heads must be 'local' under federation.algorithm 'fedbabu', whose "
                "heads stand still until the end, got 'per-task'; remove it"
            )
        for name, task in experiment.tasks.items():
            if task.init == "zero":
                yield (
                    f"tasks.{name}.init must be 'random' under federation.algorithm 'fedbabu', "
                    "whose trunk would never get a gradient through a head that stays 0, got "
                    "'zero'; remove it"
                )

    def train(self, learners: Learners) -> None:
        """Train the trunk under the initial heads."""
        self._reset(learners, learners.values)
        learners.learn(self.epochs, "trunk")

    def model(self, learners: Learners) -> Tensor:
        """Fit heads, from the initial ones, on the trunk at hand."""
        fitted = learners.aside(learners.values.clone())
        self._reset(learners, fitted.values)
        fitted.learn(self.options.fit_epochs, "heads")
        # Batch norm's running statistics have moved too; the trunk is to stay as it is.
        return torch.where(learners.columns.heads, fitted.values, learners.values)

    @staticmethod
    def _reset(learners: Learners, values: Tensor) -> None:
        heads = learners.columns.heads
        values[:, heads] = learners.initial[heads]
