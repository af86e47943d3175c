"""Example-level privacy of the clients of a lesson: what is clipped to, how rows are drawn, noise.

A client draws from one stream a round (`common.privacy.randomness`), in the order of its steps:
each step's rows, then its noise. In a simulation runs repeat, resume exactly, and engines agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Index
from client.phases import Moves
from common.experiment import Experiment
from common.privacy.example_level import example_noise, sampling_rate
from common.privacy.randomness import secret_generator

Draws = Sequence[np.random.Generator]
NO_DRAWS: Draws = ()
CPU = torch.device("cpu")


def open_draws(
    experiment: Experiment, clients: Sequence[str], round_number: int, *, simulated: bool
) -> Draws:
    """Make each client's generator for a round; none without example-level privacy."""
    if experiment.privacy.example_level is None:
        return NO_DRAWS
    seed = experiment.seed if simulated else None
    return [secret_generator(seed, "rows", client, round_number) for client in clients]


@dataclass(frozen=True)
class RowPrivacy:
    """DP-SGD of K clients (Abadi et al. 2016, Algorithm 1).

    Attributes:
        max_norm: C, what the gradient of a row is clipped to.
        rates: float64 [K], q, the probability with which a step takes a row.
        expected: float64 [K], ``q n``, the rows that a batch is expected to have.
        deviations: float64 [K], of the noise on a batch's mean gradient: ``z C / (q n)``.
        steps: int64 [K], in an epoch.
        draws: each one's generator, for rows and noise.
        on_gpu: each one's generator of noise where the gradients are on a GPU, which makes it far
            faster; empty where they are not.
    """

    max_norm: float
    rates: NDArray[np.float64]
    expected: NDArray[np.float64]
    deviations: NDArray[np.float64]
    steps: Index
    draws: Draws
    on_gpu: Sequence[torch.Generator] = ()

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        counts: Index,
        draws: Draws,
        device: torch.device = CPU,
    ) -> "RowPrivacy":
        """Work out what clients with these numbers of training rows do.

        Args:
            experiment: has the budget.
            counts: int64 [K], training rows.
            draws: each one's generator.
            device: where gradients are.

        Raises:
            ConfigError: the budget does not fit a client's rows.
        """
        level, size = experiment.privacy.example_level, experiment.training.batch_size
        if level is None or len(draws) != len(counts):
            raise RuntimeError("clients without example-level privacy, or without a generator each")
        rates = np.array([sampling_rate(n, size) for n in counts.tolist()])
        noise = np.array([example_noise(experiment, n) for n in counts.tolist()])
        expected = rates * counts.astype(np.float64)
        deviations = noise * level.max_norm / expected
        steps, on_gpu = -(-counts // size), []
        if device.type == "cuda":
            seeds = [int(own.integers(2**63)) for own in draws]
            on_gpu = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        return cls(level.max_norm, rates, expected, deviations, steps, draws, on_gpu)

    def draw_rows(self, client: int, count: int) -> Index:
        """Draw a batch of a client's rows, each by itself (a Poisson sample); may be empty."""
        return np.flatnonzero(self.draws[client].random(count) < self.rates[client])

    def draw_noise(self, clients: int, width: int) -> Tensor:
        """Draw the noise on the first clients' mean gradients, float32 [clients, width]."""
        if self.on_gpu:
            deviations = self.deviations[:clients].tolist()
            rows = [
                torch.randn(width, generator=own, device=own.device).mul_(deviation)
                for own, deviation in zip(self.on_gpu, deviations, strict=False)
            ]
            return torch.stack(rows)
        noise = np.empty((clients, width), np.float32)
        for row, generator in zip(noise, self.draws, strict=False):
            generator.standard_normal(out=row, dtype=np.float32)
        noise *= self.deviations[:clients, None].astype(np.float32)
        return torch.from_numpy(noise)


def is_private(experiment: Experiment, moves: Moves) -> bool:
    """Whether what moves in a phase is trained with noise.

    Where the trunk alone is covered, heads are fitted without: nothing of them is ever sent.
    """
    level = experiment.privacy.example_level
    return level is not None and (level.covers == "model" or moves != "heads")


def clip_factors(squares: Tensor, max_norm: float) -> Tensor:
    """Say by what rows' gradients are multiplied to be no longer than `max_norm`.

    Args:
        squares: squared norms, of any shape.
        max_norm: C.

    Returns:
        ``min(1, C / norm)``; 0 for a gradient that is no number, which says nothing.
    """
    factors = (max_norm / squares.sqrt()).clamp(max=1)
    return torch.where(squares.isfinite(), factors, 0)
