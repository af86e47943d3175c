"""One client's integers of a round, the same whether they are masked or added in one process."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.experiment import Experiment
from common.privacy.client_level import client_noise
from common.privacy.discrete_gaussian import KEY_BYTES, Bits
from common.privacy.randomness import secret_generator
from common.privacy.settings import SecureAggregation
from common.privacy.shares import Shares, largest_norm
from common.secure_aggregation.graph import count_least
from common.secure_aggregation.grids import Grid
from common.secure_aggregation.layout import Part, UpdateLayout
from common.wire import MAX_NORM, FloatArray, Instruction

TAIL = 12  # deviations of the noise on a sum that have room: beyond is less than once in 10^32
COARSE = 1e-6  # how much less noise than asked is no matter, relative
ATTEMPTS = 100
TINY = 1e-300  # a length that nothing is divided by
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


def shares_of(experiment: Experiment, clients: int, width: int) -> Shares | None:
    """Get the noise of a round that is added in shares; None where there is none.

    Args:
        experiment: the resolved experiment.
        clients: that the round asks.
        width: coordinates of an update.
    """
    level, settings = experiment.privacy.client_level, settings_of(experiment)
    if level is None or level.noise != "shares":
        return None
    return Shares(
        noise_multiplier=client_noise(experiment, clients=1),  # no sampling hides a share
        steps=Grid(level.max_norm, settings.bits).limit,
        width=width,
        guaranteed=count_least(clients, settings.threshold),
        distribution=level.distribution,
    )


def require_room(experiment: Experiment, clients: int, width: int) -> None:
    """Refuse more clients a round than have room in the integers, and noise that is too coarse.

    Args:
        experiment: the resolved experiment.
        clients: that a round asks.
        width: coordinates of an update.

    Raises:
        ConfigError: states the arithmetic.
    """
    grid, shares = Grid(1.0, settings_of(experiment).bits), shares_of(experiment, clients, width)
    if shares is None:
        grid.require_room(clients)
        return
    grid.require_room(clients, TAIL * math.sqrt(clients * shares.variance))
    wanted, found = shares.noise_multiplier, shares.effective_multiplier()
    if found < wanted * (1 - COARSE):
        raise ConfigError(
            "privacy.secure-aggregation.bits must be so many that whole numbers are as good as "
            f"noise multiplier {wanted:g}, got {grid.bits}, which are as good as {found:.4g}; "
            "raise bits, or the noise multiplier"
        )


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
        grid, width = grid_of(self.experiment, instruction), self.layout.width
        rounding = secret_generator(self.seed, "rounding", client, instruction.round)
        if self.experiment.privacy.client_level is None:
            return self.layout.pack(Part(update, weight, tasks), grid, rounding)
        # The trunk that it was added to, in between, may have stretched it.
        update = update * np.float32(min(1.0, grid.max_norm / max(_length(update), TINY)))
        part = Part(update, weight, tasks)
        numbers = self._within(part, grid, rounding, largest_norm(grid.limit, width))
        shares = shares_of(self.experiment, instruction.clients, width)
        if shares is None:
            return numbers
        noise = secret_generator(self.seed, "share", client, instruction.round)
        bits = Bits(None if self.seed is None else noise.bytes(KEY_BYTES))
        numbers[:width] += shares.sample(noise, bits)
        return numbers

    def _within(
        self, part: Part, grid: Grid, rounding: np.random.Generator, norm: float
    ) -> NDArray[np.int64]:
        """Round until the norm is what noise is measured against; at last towards zero."""
        width = self.layout.width
        for _ in range(ATTEMPTS):
            numbers = self.layout.pack(part, grid, rounding)
            if _length(numbers[:width]) <= norm:
                return numbers
        numbers[:width] = np.trunc(part.update.astype(np.float64) / grid.step)
        return numbers


def _length(values: NDArray[Any]) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))
