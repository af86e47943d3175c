"""What is received and what was at home, mixed weight by weight."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from client.algorithms.algorithm import Keeps, LocalAlgorithm, lacks_common_layers
from client.flat import HEADS
from client.learners import Learners
from client.optimisers import GradientStore, Part
from common.experiment import Experiment
from common.settings import Finite, Settings
from common.sharing import task_of


class MixingWeights(GradientStore):
    """Moves how much of every parameter is taken over: ``W <- clip(W - rate * g * d, 0, 1)``.

    Zhang et al., "FedALA: adaptive local aggregation for personalized federated learning", AAAI
    2023, eqs. 4 and 5; the parameters follow as ``personal + d * W`` with ``d = received -
    personal``.

    Args:
        values: [K, P], moved in place.
        gradients: [K, P] where autograd fills them in.
        personal: [K, P].
        difference: [K, P], d; 0 where nothing is mixed.
        weights: [K, P], moved in place.
        rate: the step size.
    """

    def __init__(
        self,
        values: Tensor,
        gradients: Tensor | None,
        personal: Tensor,
        difference: Tensor,
        weights: Tensor,
        rate: float,
    ) -> None:
        super().__init__(values, gradients)
        self.personal, self.difference = personal, difference
        self.weights, self.rate = weights, rate

    def step(self, rows: int, parts: Sequence[Part]) -> None:
        """Move the first clients' weights, and their parameters with them."""
        difference = self.difference[:rows]
        weights = self.weights[:rows]
        weights.sub_(self.gradients[:rows] * difference, alpha=self.rate).clamp_(0, 1)
        mixed = torch.addcmul(self.personal[:rows], difference, weights)
        self.values[:rows] = torch.where(difference != 0, mixed, self.values[:rows])


class FedALA(LocalAlgorithm):
    """Before it trains, a client mixes the trunk received with its own, by learned weights.

    Zhang et al., "FedALA: adaptive local aggregation for personalized federated learning", AAAI
    2023, Algorithm 1. The last layers of the trunk are mixed, those below are taken over. The paper
    learns the weights until they stand still in a client's second round, on a sample of its rows;
    here for a number of epochs, on all of them. Heads stay home and are not mixed.
    """

    KEEPS: ClassVar[Keeps] = {"personal": "shared", "mixing": "shared"}

    class Options(Settings):
        """See `LocalAlgorithm.Options`."""

        layers: int = Field(
            1, ge=1, description="How many of the trunk's last layers are mixed; the paper's p."
        )
        mixing_epochs: int = Field(1, ge=1, description="Epochs in which the weights are learned.")
        mixing_lr: Finite = Field(1.0, gt=0, description="Their step size; the paper's eta.")

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """No more layers can be mixed than there are."""
        yield from lacks_common_layers(experiment)
        trunk = experiment.trunk
        if trunk.sharing != "hard" or not trunk.has_layers:
            return
        if trunk.is_ready:  # how many layers it has, its library knows
            return
        layers = len(trunk.widths)
        if trunk.architecture == "cnn":
            images = sum(one.kind == "image" for one in experiment.inputs.values())
            layers += len(trunk.channels) * images
        if options.layers > layers:
            yield (
                f"federation.algorithm-options.layers must be at most {layers}, the number of the "
                f"trunk's layers, got {options.layers}; lower it, or give the trunk more layers"
            )

    def start(self, name: str, learners: Learners) -> Tensor:
        """Take all of what is received."""
        if name == "mixing":
            return torch.ones_like(learners.values)
        return super().start(name, learners)

    def receive(self, learners: Learners) -> None:
        """Learn how much to take over, and take it."""
        personal, weights = learners.kept["personal"], learners.kept["mixing"]
        mixed = self._last_layers(learners)
        difference = torch.where(mixed, learners.values - personal, 0)
        if not difference.any():
            return  # nobody here has trained before
        start = torch.addcmul(personal, difference, weights)
        learners.values.copy_(torch.where(mixed, start, learners.values))
        options = self.options

        def make(values: Tensor, gradients: Tensor | None) -> MixingWeights:
            rate = options.mixing_lr
            return MixingWeights(values, gradients, personal, difference, weights, rate)

        mixture = learners.aside(learners.values.clone())
        mixture.learn(options.mixing_epochs, make=make)
        # Batch norm's running statistics have moved too, and are not what is mixed.
        learners.values.copy_(torch.where(mixed, mixture.values, learners.values))

    def train(self, learners: Learners) -> None:
        """Train jointly, and keep the trunk."""
        super().train(learners)
        learners.kept["personal"].copy_(learners.values)

    def _last_layers(self, learners: Learners) -> Tensor:
        """Mark the last layers that all tasks share, each a weight and its followers, bool [P]."""
        columns, found = learners.columns, []
        layers = 0
        layout = columns.layout
        shared = [n for n in layout.slices if n in columns.names and not n.startswith(HEADS)]
        for name in reversed([n for n in shared if task_of(n) is None]):
            found.append(layout.slices[name])
            layers += len(layout.shapes[name]) > 1
            if layers == self.options.layers:
                break
        return columns.mask(found).to(columns.shared.device) & columns.common

    def model(self, learners: Learners) -> Tensor:
        """Use the mixture that `receive` made, or after training what became of it."""
        return learners.values

    def use(self, values: Tensor, kept: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Mix, by the weights that were learned last."""
        if "personal" not in kept:
            return values
        personal = kept["personal"]
        return torch.addcmul(personal, values - personal, kept["mixing"])
