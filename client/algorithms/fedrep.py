"""Heads first, then the trunk."""

from pydantic import Field

from client.algorithms.algorithm import LocalAlgorithm
from client.learners import Learners
from common.settings import Settings


class FedRep(LocalAlgorithm):
    """Heads are fitted to the trunk received, then the trunk to the heads.

    Collins et al., "Exploiting shared representations for personalized federated learning", ICML
    2021, Algorithm 1. The trunk trains for ``training.epochs``.
    """

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        head_epochs: int = Field(
            10, ge=1, description="Epochs of the heads, before those of the trunk; the paper's 10."
        )

    @property
    def passes(self) -> int:
        """Head epochs count as well."""
        return self.epochs + int(self.options.head_epochs)

    def train(self, learners: Learners) -> None:
        """Fit the heads, then the trunk."""
        learners.learn(self.options.head_epochs, "heads")
        learners.learn(self.epochs, "trunk")
