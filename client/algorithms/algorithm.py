"""What every algorithm of the client's side is."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from client.learners import Learners
from client.optimisers import Correction
from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS
from common.experiment import Experiment
from common.methods import make_options
from common.settings import Settings

Keeps = Mapping[str, Literal["shared", "model"]]


class LocalAlgorithm:
    """Base of the algorithms, each a class in its own file and a line in `ALGORITHMS`.

    It is written once for K clients side by side and holds nothing itself. A message to train goes
    `receive`, `train`; what is evaluated, and predicts, is `model`. Here all of it is that of joint
    training.

    Attributes:
        KEEPS: what it keeps at home beside what does not travel anyway -> of which parameters:
            "shared", those that travel, or "model", all.
    """

    KEEPS: ClassVar[Keeps] = {}

    class Options(Settings):
        """What ``federation.algorithm-options`` may hold; nothing here."""

    def __init__(self, options: Any, experiment: Experiment) -> None:
        self.options, self.experiment = options, experiment

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each."""
        yield from ()

    @property
    def epochs(self) -> int:
        """The experiment's local epochs."""
        return self.experiment.training.epochs

    @property
    def passes(self) -> int:
        """How often a round's training sums count each row."""
        return self.epochs

    def start(self, name: str, learners: Learners) -> Tensor:
        """Make what a client keeps before its first round, [K, P]: a copy of the parameters."""
        return learners.values.clone()

    def receive(self, learners: Learners) -> None:
        """Make the parameters to start from of what came and what was kept."""

    def train(self, learners: Learners) -> None:
        """Train for one round, in `learners.values`, whose shared columns are sent."""
        learners.learn(self.epochs)

    def model(self, learners: Learners) -> Tensor:
        """Get the parameters that the clients use, [K, P]."""
        return self.use(learners.values, learners.kept, learners.columns.shared)

    def use(self, values: Tensor, kept: Mapping[str, Tensor], shared: Tensor) -> Tensor:
        """Make the parameters to use of those at hand and what was kept, element by element.

        Args:
            values: parameters, of any shape.
            kept: name -> as `values`; a name may be missing where nothing of it travels.
            shared: bool, of a shape that fits: whether they travel.
        """
        return values


def open_algorithm(experiment: Experiment) -> LocalAlgorithm:
    """Make the algorithm that an experiment names."""
    federation = experiment.federation
    options = make_options(ALGORITHMS, federation.algorithm, federation.algorithm_options)
    made: LocalAlgorithm = ALGORITHMS[federation.algorithm].load()(options, experiment)
    return made


def pulled(learners: Learners, strength: float) -> Correction:
    """Draw what travels to where it is now: ``strength/2 |w - w_now|^2``."""
    pull = learners.columns.shared.to(torch.float32) * strength
    return Correction(pull=pull, anchor=learners.values.clone())


def lacks_common_layers(experiment: Experiment) -> Iterator[str]:
    """Say that a trunk has nothing that all tasks share, where an algorithm works on that alone."""
    trunk, name = experiment.trunk, experiment.federation.algorithm
    if not trunk.has_layers or not SHARINGS[trunk.sharing].has_common_parts:
        yield (
            f"federation.algorithm '{name}' needs trunk layers that all tasks share, got "
            f"trunk.sharing '{trunk.sharing}' with trunk.widths = {list(trunk.widths)}, where it "
            "would change nothing; take another sharing, give the trunk a layer, or set "
            "federation.algorithm to 'joint'"
        )
