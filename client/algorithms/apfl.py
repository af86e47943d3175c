"""A mixture of a personal and the shared trunk."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from client.algorithms.algorithm import Keeps, LocalAlgorithm
from client.learners import Learners
from client.optimisers import Correction
from common.settings import Finite, Settings


class APFL(LocalAlgorithm):
    """The client uses ``alpha v + (1 - alpha) w``: its own trunk and the shared one, mixed.

    Deng et al., "Adaptive personalized federated learning", 2020, Algorithm 1, with a fixed alpha.
    The paper moves both trunks at every step; here the shared one stands still while the personal
    one trains on the mixture, which is the same where a client takes one step a round. The gradient
    by ``v`` is alpha times the mixture's, and the mixture moves by alpha times that. The mixture
    has heads of its own; of its running statistics, too, the client keeps those of the mixture.
    """

    KEEPS: ClassVar[Keeps] = {"personal": "model"}

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        alpha: Finite = Field(0.5, gt=0, le=1, description="Share of the client's own trunk.")

    @property
    def passes(self) -> int:
        """Both models count."""
        return 2 * self.epochs

    def train(self, learners: Learners) -> None:
        """Train the shared trunk, then the mixture."""
        alpha, shared = self.options.alpha, learners.columns.shared
        # Running statistics are not solved for v: a mixture of such could be a variance below 0.
        solved = shared & learners.columns.trained
        received, mixed = learners.values.clone(), self.model(learners)
        learners.learn(self.epochs)
        scale = torch.where(shared, alpha**2, 1.0)
        learners.learn(self.epochs, correction=Correction(scale=scale), values=mixed)
        personal = (mixed - (1 - alpha) * received) / alpha
        learners.kept["personal"].copy_(torch.where(solved, personal, mixed))

    def use(self, values: Tensor, kept: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Mix the trunks; heads are the mixture's own."""
        personal, alpha = kept["personal"], self.options.alpha
        return torch.where(shared, alpha * personal + (1 - alpha) * values, personal)
