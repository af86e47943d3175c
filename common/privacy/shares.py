"""Noise in shares: each client adds a part of it, so that nobody need be trusted with the whole.

The sum of clients' integers is private although no client's own are. With z the noise multiplier, D
the largest norm that a client's rounded update can have, and t the number of clients that secure
aggregation guarantees to be in a sum, every client adds noise of variance ``(z D)^2 / t`` to each
coordinate: the noise of any t clients has the variance ``(z D)^2``, that of more has more.

Rounding lengthens an update. It is drawn again until its norm is within Kairouz, Liu & Steinke 2021
("The distributed discrete Gaussian mechanism for federated learning with secure aggregation", ICML,
section 4.1, with beta = exp(-1/2)), in steps of the grid, c of max-norm and d coordinates::

    D^2 = min(c^2 + d / 4 + c + sqrt(d) / 2, (c + sqrt(d))^2)

An attempt keeps it with probability 0.39 or more. With 20 bits and a million coordinates D is two
millionths above c.

A client that tells the server its own noise leaves that of the others: where c of the t collude,
the noise that counts has the variance of t - c shares.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.privacy.accounting import Event, epsilon_of
from common.privacy.discrete_gaussian import Bits, sample_discrete_gaussian

Distribution = Literal["discrete-gaussian", "skellam"]
WHOLE_ORDERS = range(2, 257)


def largest_norm(steps: int, width: int) -> float:
    """Bound the norm of a rounded update, in steps of the grid: D.

    Args:
        steps: c, max-norm in steps.
        width: d, coordinates.

    >>> round(largest_norm(1000, 10_000), 1)
    1001.8
    """
    likely = steps**2 + width / 4 + steps + math.sqrt(width) / 2
    return math.sqrt(min(likely, (steps + math.sqrt(width)) ** 2))


@dataclass(frozen=True)
class Shares:
    """The noise of a round.

    Attributes:
        noise_multiplier: z, of the sum over those who are guaranteed to be in it.
        steps: c, max-norm in steps of the grid.
        width: d, coordinates.
        guaranteed: t, clients that are in every sum.
        distribution: of each share.
    """

    noise_multiplier: float
    steps: int
    width: int
    guaranteed: int
    distribution: Distribution

    @property
    def norm(self) -> float:
        """Largest norm of a rounded update, D."""
        return largest_norm(self.steps, self.width)

    @property
    def variance(self) -> int:
        """Variance of one share in each coordinate, in steps of the grid; rounded up."""
        return math.ceil((self.noise_multiplier * self.norm) ** 2 / self.guaranteed)

    def sample(self, generator: np.random.Generator, bits: Bits) -> NDArray[np.int64]:
        """Draw one client's share, [width].

        The discrete Gaussian is exact; Skellam noise is the difference of two of NumPy's Poisson
        samples, which are made in double precision.
        """
        if self.distribution == "discrete-gaussian":
            return sample_discrete_gaussian(self.variance, self.width, bits)
        half = self.variance / 2
        more, less = (generator.poisson(half, self.width) for _ in range(2))
        return np.asarray(more - less, np.int64)

    def effective_multiplier(self) -> float:
        """Say which Gaussian noise multiplier costs as much as these shares, at the least.

        For the discrete Gaussian by concentrated differential privacy, at every order; for Skellam
        noise at whole orders up to 256.
        """
        if self.distribution == "skellam":
            orders = np.array(WHOLE_ORDERS)
            costs = np.array([self.skellam_divergence(int(order)) for order in orders])
            return float(np.sqrt(orders / (2 * costs)).min())
        return 1.0 / self._concentrated()

    def _concentrated(self) -> float:
        """Bound the epsilon of ``epsilon^2 / 2``-concentrated differential privacy.

        Kairouz, Liu & Steinke 2021, theorem 1: ``D / (sqrt(n) sigma) + tau sqrt(d)``, where a sum
        of n discrete Gaussians misses being one by
        ``tau = 10 sum_k exp(-2 pi^2 sigma^2 k / (k + 1))``.
        """
        n, variance, d = self.guaranteed, self.variance, self.width
        apart = range(1, n)
        tau = 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in apart)
        alone = self.norm / math.sqrt(n * variance)
        return alone + tau * math.sqrt(d)

    def skellam_divergence(self, order: int) -> float:
        """Bound the Renyi divergence of Skellam noise at a whole order, of one release.

        Agarwal, Kairouz & Liu 2021 ("The Skellam mechanism for differentially private federated
        learning", NeurIPS, corollary 3.6): with mu the variance of the sum, D1 and D2 the
        sensitivities, ``a D2^2 / (2 mu) + min(((2 a - 1) D2^2 + 6 D1) / (4 mu^2), 3 D1 / (2 mu))``.
        Of whole numbers ``D1 <= min(sqrt(d) D2, D2^2)``.
        """
        mu, squared = self.guaranteed * self.variance, self.norm**2
        first = min(math.sqrt(self.width) * self.norm, squared)
        beyond = min(((2 * order - 1) * squared + 6 * first) / (4 * mu**2), 3 * first / (2 * mu))
        return order * squared / (2 * mu) + beyond


def shares_epsilon(shares: Shares, rounds: int, delta: float) -> float:
    """Bound the epsilon of so many rounds of shares.

    Of the discrete Gaussian as of Gaussian noise with the effective multiplier; of Skellam noise
    from whole orders alone, which is loose for an epsilon of more than about 20.

    Args:
        shares: of each round.
        rounds: that a client takes part in.
        delta: in (0, 1).
    """
    if shares.distribution == "discrete-gaussian":
        return epsilon_of([Event(shares.effective_multiplier(), 1.0, rounds)], delta)
    from dp_accounting.rdp import compute_epsilon

    orders = np.array(WHOLE_ORDERS, dtype=float)
    costs = np.array([shares.skellam_divergence(order) for order in WHOLE_ORDERS])
    epsilon, _ = compute_epsilon(orders, rounds * costs, delta)
    return float(epsilon)
