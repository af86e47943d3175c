"""A trunk that is held back."""

from pydantic import Field

from client.algorithms.algorithm import LocalAlgorithm, pulled
from client.learners import Learners
from common.settings import Finite, Settings


class FedProx(LocalAlgorithm):
    """Joint training, with the trunk drawn to the one received: ``mu/2 |w - w_t|^2``.

    Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, eq. 2. Heads, which
    have no common value to be drawn to, are free.
    """

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        mu: Finite = Field(
            0.01, gt=0, description="Strength of the pull; the paper tries 0.001 to 1."
        )

    def train(self, learners: Learners) -> None:
        """Train jointly, with the pull."""
        correction = pulled(learners, self.options.mu)
        learners.learn(self.epochs, correction=correction)
