"""Personal trunks drawn to their mean."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from client.algorithms.algorithm import Keeps, LocalAlgorithm, pulled
from client.learners import Learners
from common.settings import Finite, Settings


class MeanRegularised(LocalAlgorithm):
    """Every client has its own trunk, drawn to the mean of all: ``lambda/2 |w_k - w_mean|^2``.

    Liu et al., "On privacy and personalization in cross-silo federated learning", NeurIPS 2022,
    Algorithm A1 (MR-MTL). Clients send their own trunks; what they receive is the mean.
    """

    KEEPS: ClassVar[Keeps] = {"personal": "shared"}

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        pull: Finite = Field(
            0.1, ge=0, description="lambda: 0 is training alone, much of it is joint training."
        )

    def train(self, learners: Learners) -> None:
        """Train the client's own trunk towards the mean received."""
        correction = pulled(learners, self.options.pull)
        learners.values.copy_(self.model(learners))
        learners.learn(self.epochs, correction=correction)
        learners.kept["personal"].copy_(learners.values)

    def use(self, values: Tensor, kept: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Use the client's own trunk."""
        return torch.where(shared, kept["personal"], values) if "personal" in kept else values
