"""Drift of the clients, measured and taken back."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from client.algorithms.algorithm import Keeps, LocalAlgorithm, lacks_common_layers
from client.learners import Learners
from client.optimisers import Correction
from client.rates import StepSchedule
from common.experiment import Experiment
from common.schedules.rates import rate_of_round


class Scaffold(LocalAlgorithm):
    """Control variates correct every gradient of the trunk: ``g - c_i + c``.

    Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML
    2020, Algorithm 1, with option II for the client's variate:
    ``c_i' = c_i - c + (x - y_i) / (K lr)`` after K steps, with the sum of the steps' rates for
    ``K lr`` where they differ. The server's ``c`` comes with the trunk; back goes
    ``c + c_i' - c_i``. Only what all tasks share is corrected; heads have no drift.
    """

    KEEPS: ClassVar[Keeps] = {"control": "shared"}

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """A variate is a mean gradient: only plain steps show it, and only what all tasks share."""
        yield from lacks_common_layers(experiment)
        training = experiment.training
        if training.optimiser != "sgd" or training.momentum:
            got = f"'{training.optimiser}'" + (
                f" with momentum {training.momentum:g}" if training.momentum else ""
            )
            yield (
                "training.optimiser must be 'sgd' without momentum under federation.algorithm "
                f"'scaffold', whose control variates are mean gradients, got {got}; change one of "
                "the two"
            )

    def start(self, name: str, learners: Learners) -> Tensor:
        """Start at 0."""
        return torch.zeros_like(learners.values)

    def train(self, learners: Learners) -> None:
        """Train with corrected gradients, and renew the client's variate."""
        common, start = learners.columns.common, learners.values.clone()
        control = learners.received.get("control", torch.zeros_like(learners.initial))
        own = learners.kept["control"]
        offset = torch.where(common, control - own, 0)
        learners.learn(self.epochs, correction=Correction(offset=offset))
        factors = StepSchedule(self.experiment.training).totals(learners.batches * self.epochs)
        rates = factors * rate_of_round(self.experiment, learners.lesson.round)  # [K]
        gradient = (start - learners.values) / torch.from_numpy(rates[:, None]).to(start)
        renewed = torch.where(common, gradient - offset, own)
        learners.sends["control"] = torch.where(common, control + renewed - own, control)
        own.copy_(renewed)
