"""The mean update under differential privacy with a client as its unit.

Clipped updates are added up, noise is added to the sum where the server is trusted with it, and the
sum is divided by the number of clients that a round is expected to have, which no client's presence
changes (McMahan et al. 2018, "Learning differentially private recurrent language models", the
estimator with a fixed denominator). A client that does not answer, or lacks a task, adds 0. Under
secure aggregation updates are rounded, which lengthens them, and the noise grows with what a
rounded one can be long at most (`common.privacy.shares.largest_norm`).

Adaptive clipping (Andrew et al. 2021, "Differentially private learning with adaptive clipping",
Algorithm 1) counts how many updates are within the norm, also with noise, and moves the norm::

    b = 1/2 + (sum_k (b_k - 1/2) + N(0, sigma_b^2)) / m,    C <- C exp(-eta (b - gamma))

The noise on the updates is then ``z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)``, so that both cost
together what z would.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment
from common.privacy.client_level import (
    client_noise,
    count_noise,
    expected_clients,
    update_noise,
)
from common.privacy.randomness import secret_generator, secret_key
from common.privacy.shares import largest_norm
from common.secure_aggregation.grids import Grid
from common.wire import MAX_NORM, FloatArray
from server.sampling import Poisson

ROUNDING = 1e-4
MOST_STEP = 10.0  # of the norm's logarithm in one round
LONGEST = 1e6  # a max-norm stays within this factor of the first, both ways


@dataclass(frozen=True)
class Total:
    """What a round's clipped updates add up to.

    Attributes:
        update: float64 [Q].
        replies: how many were added.
        within: how many of them were no longer than the norm.
    """

    update: NDArray[np.float64]
    replies: int
    within: int


class PrivateMean:
    """Makes a round's mean update of its clients' updates, and remembers the norm.

    Args:
        experiment: says what is asked for.
        clients: of the federation at the start of the run.
        seed: a simulation's; None for fresh entropy of the system.

    Attributes:
        clients: as given; a resumed run keeps the first one's, because noise and rate go by it.
        max_norm: what updates are clipped to in the next round.
        expected: m, clients that a round expects.
        noise_multiplier: z, of all that a round releases.
        update_noise: z_delta, of the updates' sum; z without adaptive clipping.
        count_noise: sigma_b, of the count of updates within the norm.
    """

    def __init__(self, experiment: Experiment, clients: int, seed: int | None) -> None:
        level = experiment.privacy.client_level
        if level is None:
            raise ValueError("privacy.client-level is not asked for")
        self.experiment, self.level, self.seed = experiment, level, seed
        self.max_norm: float = level.max_norm
        self._key = secret_key(None) if seed is None else seed
        self._count(clients)

    def _count(self, clients: int) -> None:
        """Set what goes by the number of clients."""
        self.clients, experiment = clients, self.experiment
        self.expected = expected_clients(experiment, clients)
        self.noise_multiplier = client_noise(experiment, clients)
        self.count_noise, self.update_noise = 0.0, self.noise_multiplier
        if self.level.quantile is not None:
            self.count_noise = count_noise(experiment, clients)
            self.update_noise = update_noise(self.noise_multiplier, self.count_noise)

    @property
    def poisson(self) -> Poisson:
        """How a Poisson sample draws clients."""
        return Poisson(self.expected / self.clients, self._key)

    def instruct(self) -> dict[str, float]:
        """Say what clients need for a round beside the experiment."""
        return {MAX_NORM: self.max_norm} if self.level.clip == "client" else {}

    def total(self, rows: FloatArray, before: FloatArray) -> Total:
        """Add up the updates of K clients, clipped where the server is to see them whole.

        Args:
            rows: [K, Q], their local trunks, as they came.
            before: [Q], what they were sent.
        """
        total, update = np.zeros(len(before)), np.empty(len(before))
        # Who was clipped at home has a norm that rounding moved a little.
        longest = self.max_norm * (1 - ROUNDING if self.level.clip == "client" else 1)
        within = 0
        for row in rows:
            np.subtract(row, before, out=update, dtype=np.float64)
            norm = float(np.sqrt(update @ update))
            within += norm <= longest
            if self.level.noise == "server" and norm > self.max_norm:
                update *= self.max_norm / norm  # also what a client did not clip
            total += update
        return Total(total, len(rows), int(within))

    def release(self, total: Total, before: FloatArray, *stream: str | int) -> FloatArray:
        """Make the mean of a total, with its noise, and move the norm.

        Args:
            total: of the round.
            before: [Q], the trunk that was sent.
            stream: names the round's noise in a simulation.

        Returns:
            [Q], the trunk that was sent and the mean update.
        """
        update, noise = total.update, secret_generator(self.seed, "mean", *stream)
        if self.level.noise == "server":
            deviation = self.update_noise * self.max_norm * self._stretch(len(update))
            update = update + noise.normal(0.0, deviation, len(update))
        following: FloatArray = (before + update / self.expected).astype(before.dtype)
        if self.level.quantile is not None:
            self._adapt(total, self.level.quantile, noise)
        return following

    def _stretch(self, width: int) -> float:
        """Say how many times max-norm an update is long at most; above 1 where it was rounded."""
        secure = self.experiment.privacy.secure_aggregation
        if secure is None:
            return 1.0
        limit = Grid(self.max_norm, secure.bits).limit
        return largest_norm(limit, width) / limit

    def _adapt(self, total: Total, quantile: float, noise: np.random.Generator) -> None:
        """Let the norm follow its quantile."""
        count = total.within - total.replies / 2 + noise.normal(0.0, self.count_noise)
        step = self.level.quantile_lr * (0.5 + count / self.expected - quantile)
        first = self.level.max_norm
        moved = self.max_norm * math.exp(min(max(-step, -MOST_STEP), MOST_STEP))
        self.max_norm = min(max(moved, first / LONGEST), first * LONGEST)

    def state(self) -> dict[str, NDArray[Any]]:
        """Get what is remembered from round to round, for the checkpoint."""
        return {"max-norm": np.array(self.max_norm), "clients": np.array(self.clients)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` returned."""
        self.max_norm = float(state["max-norm"])
        self._count(int(state["clients"]))
