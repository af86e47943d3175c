"""The mean update as a gradient of the server's own optimiser: FedAvgM and FedOpt."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from common.experiment import Experiment
from common.settings import Settings
from common.wire import FloatArray
from server.aggregation.flower import FlowerRule
from server.aggregation.rule import Updates
from server.aggregation.sketch import plain_parts

BETA_1 = Field(0.9, ge=0, lt=1, description="Decay of the mean of updates, m.")
BETA_2 = Field(0.99, ge=0, lt=1, description="Decay of the mean of squared updates, v.")
TAU = Field(1e-3, gt=0, description="Added to the root of v: the smaller, the more adaptive.")


class ServerOptimiser(FlowerRule):
    """Base: Flower's strategy gets the weighted mean as one message.

    So clients count exactly as `federation.weight-by` says. Running statistics of norms are no
    gradients, and a step could make a variance negative: they are averaged.
    """

    def combine(self, updates: Updates) -> FloatArray:
        """Step from the trunk that was sent, [Q]."""
        mean, kept = updates.mean(), self.state()
        following = self.aggregate(updates.round, updates.before, mean[None])
        # A squared update may overflow where the step does not: infinite for good, it would end
        # every later step.
        if not all(np.isfinite(array).all() for array in (following, *self.state().values())):
            self.restore(kept)
            return np.full_like(following, np.nan)
        for place in plain_parts(updates.columns):
            following[place] = mean[place]
        return following


class FedAvgM(ServerOptimiser):
    """``v <- beta v + (w - mean_k w_k)``, ``w <- w - eta v`` (Hsu et al. 2019, section 4.3)."""

    strategy: ClassVar[str] = "FedAvgM"
    remembers: ClassVar[tuple[str, ...]] = ("momentum_vector",)

    class Options(Settings):
        """Options of FedAvgM."""

        server_learning_rate: float = Field(1.0, gt=0, description="Length of the step, eta.")
        server_momentum: float = Field(
            0.9,
            ge=0,
            lt=1,
            description="Share of the step before, beta: 0.9 as in the paper; Flower's own default "
            "is 0, which is 'fedavg'.",
        )

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Without momentum and rate it is the mean."""
        if options.server_momentum == 0 and options.server_learning_rate == 1:
            yield (
                "federation.strategy-options.server-momentum must be above 0 where "
                "server-learning-rate is 1, got 0: that is federation.strategy 'fedavg'; set one "
                "of them, or choose 'fedavg'"
            )


class FedAdam(ServerOptimiser):
    """``w <- w + eta_t m / (sqrt(v) + tau)`` (Reddi et al. 2021, Algorithm 2, FedAdam).

    ``d = mean_k w_k - w``, ``m <- b1 m + (1 - b1) d``, ``v <- b2 v + (1 - b2) d^2``. In Flower
    ``v`` begins with 0, where the paper asks for tau^2 or more, and in round t ``eta_t = eta
    sqrt(1 - b2^(t+1)) / (1 - b1^(t+1))``, a correction that the paper leaves out.
    """

    strategy: ClassVar[str] = "FedAdam"
    remembers: ClassVar[tuple[str, ...]] = ("m_t", "v_t")

    class Options(Settings):
        """Options of FedAdam, those of Flower less eta-l, which it does not use."""

        eta: float = Field(0.1, gt=0, description="Learning rate of the server.")
        beta_1: float = BETA_1
        beta_2: float = BETA_2
        tau: float = TAU


class FedYogi(ServerOptimiser):
    """``v <- v - (1 - b2) d^2 sign(v - d^2)``, else FedAdam uncorrected (Reddi et al. 2021)."""

    strategy: ClassVar[str] = "FedYogi"
    remembers: ClassVar[tuple[str, ...]] = ("m_t", "v_t")

    class Options(Settings):
        """Options of FedYogi, those of Flower less eta-l, which it does not use."""

        eta: float = Field(0.01, gt=0, description="Learning rate of the server.")
        beta_1: float = BETA_1
        beta_2: float = BETA_2
        tau: float = TAU


class FedAdagrad(ServerOptimiser):
    """``v <- v + d^2``, ``w <- w + eta d / (sqrt(v) + tau)`` (Reddi et al. 2021, Algorithm 2)."""

    strategy: ClassVar[str] = "FedAdagrad"
    remembers: ClassVar[tuple[str, ...]] = ("m_t", "v_t")

    class Options(Settings):
        """Options of FedAdagrad, those of Flower less eta-l, which it does not use."""

        eta: float = Field(0.1, gt=0, description="Learning rate of the server.")
        tau: float = TAU
