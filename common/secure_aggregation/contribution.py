"""One client's integers of a round, the same whether they are masked or added in one process."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.experiment import Experiment
from common.privacy.randomness import secret_generator
from common.privacy.settings import SecureAggregation
from common.secure_aggregation.grids import Grid
from common.secure_aggregation.layout import Part, UpdateLayout
from common.wire import MAX_NORM, FloatArray, Instruction

MOST_EXAMPLES = "most-examples"  # in `Instruction.privacy`: training rows that weigh 1


def settings_of(experiment: Experiment) -> SecureAggregation:
    """Get the settings, which must be there."""
    settings = experiment.privacy.secure_aggregation
    if settings is None:
        raise ConfigError("privacy.secure-aggregation must be given to add securely, got none")
    return settings


def adds_sums(experiment: Experiment) -> bool:
    """Whether losses and metrics are added securely."""
    privacy = experiment.privacy
    return privacy.secure_aggregation is not None and privacy.sums_regime == "secure"


def grid_of(experiment: Experiment, instruction: Instruction) -> Grid:
    """Make the grid of a round, from what updates are clipped to."""
    level, norm = experiment.privacy.client_level, experiment.privacy.update_norm
    if level is not None and level.quantile is not None:
        norm = float(instruction.privacy[MAX_NORM])
    return Grid(norm or 1.0, settings_of(experiment).bits)


def require_room(experiment: Experiment, clients: int) -> None:
    """Refuse more clients a round than have room in the integers.

    Raises:
        ConfigError: states the arithmetic.
    """
    Grid(1.0, settings_of(experiment).bits).require_room(clients)


class Contributions:
    """Makes clients' integers.

    Args:
        experiment: what is added, and how.
        sizes: travelling parameter -> number of columns.
        seed: a simulation's; None where rounding is nobody else's business.
    """

    def __init__(self, experiment: Experiment, sizes: Mapping[str, int], seed: int | None) -> None:
        self.experiment, self.seed = experiment, seed
        self.layout = UpdateLayout(experiment, sizes)

    def make(
        self,
        client: str,
        update: FloatArray,
        examples: int,
        tasks: Sequence[str],
        instruction: Instruction,
    ) -> NDArray[np.int64]:
        """Put a clipped update into integers, [full_width].

        Args:
            client: its name, of its own random stream.
            update: [Q], clipped.
            examples: its training rows.
            tasks: that it holds.
            instruction: of the round.
        """
        weight = 1.0
        if self.layout.weighs:
            most = instruction.privacy.get(MOST_EXAMPLES)
            most = settings_of(self.experiment).most_examples if most is None else most
            weight = min(1.0, examples / max(most, 1.0))
        rounding = secret_generator(self.seed, "rounding", client, instruction.round)
        grid = grid_of(self.experiment, instruction)
        return self.layout.pack(Part(update, weight, tasks), grid, rounding)
