"""A personal model beside the shared one."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from client.algorithms.algorithm import Keeps, LocalAlgorithm, pulled
from client.learners import Learners
from common.settings import Finite, Settings


class Ditto(LocalAlgorithm):
    """A personal model at home, its trunk drawn to the shared one: ``lambda/2 |v - w_t|^2``.

    Li et al., "Ditto: fair and robust federated learning through personalization", ICML 2021,
    Algorithm 1. The shared trunk trains with heads of its own, as in joint training. A client that
    trains for the first time starts its personal model from what it received; in round 1 that is
    the paper's start.
    """

    KEEPS: ClassVar[Keeps] = {"personal": "model"}

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        pull: Finite = Field(
            0.1, ge=0, description="lambda, how strongly the personal trunk is drawn to the shared."
        )
        personal_epochs: int | None = Field(
            None, ge=1, description="Epochs of the personal model; default: training.epochs."
        )

    @property
    def passes(self) -> int:
        """Both models count."""
        return self.epochs + self._personal_epochs

    @property
    def _personal_epochs(self) -> int:
        return int(self.options.personal_epochs or self.epochs)

    def train(self, learners: Learners) -> None:
        """Train the shared trunk, then the personal model towards the trunk received."""
        correction = pulled(learners, self.options.pull)
        learners.learn(self.epochs)
        personal = learners.kept["personal"]
        learners.learn(self._personal_epochs, correction=correction, values=personal)

    def use(self, values: Tensor, kept: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Use the personal model."""
        return kept["personal"]
