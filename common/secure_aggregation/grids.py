"""Numbers as integers that can be added modulo a power of two, and never overflow.

**Updates**, in 32 bits. A client's update is clipped to L2 norm C, so every coordinate lies in
[-C, C], and so does w times it for a weight w in [0, 1]. It is rounded to a multiple of
``C / L`` with ``L = 2^(bits - 1) - 1``, so that an integer is at most L in size, and the sum of K
of them at most K L: with ``K L < 2^31`` no sum overflows, whatever the clients hold.

**Sums** of losses and metrics, in two words of 64 bits each: a multiple of 2^20 and a rest of at
most 2^19 in size, on a grid of 2^-31. Numbers up to 2^82 / K in size have room.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError

Floats = NDArray[np.float64]
MODULUS_BITS = 32
COARSE, FINE = 2.0**20, 2.0**-31
COARSE_MOST = 2**62  # times COARSE: of the sum of all clients' numbers
MOST_CLIENTS = 2**12  # whose rests fit, 2^50 of their grid each


@dataclass(frozen=True)
class Grid:
    """The grid of updates.

    Attributes:
        max_norm: C.
        bits: of each number.
    """

    max_norm: float
    bits: int

    @property
    def limit(self) -> int:
        """Largest integer, L."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def step(self) -> float:
        """Width of the grid, C / L."""
        return self.max_norm / self.limit

    @property
    def most_clients(self) -> int:
        """Largest number of clients whose sum has room."""
        return min(MOST_CLIENTS, int(2 ** (MODULUS_BITS - 1) - 1) // self.limit)

    def require_room(self, clients: int, noise: float = 0.0) -> None:
        """Refuse more clients than have room.

        Args:
            clients: that a round asks.
            noise: how far noise may move their sum.

        Raises:
            ConfigError: states the arithmetic.
        """
        reach = clients * self.limit + noise
        if noise and reach >= 2 ** (MODULUS_BITS - 1):
            raise ConfigError(
                f"privacy.secure-aggregation.bits must leave room for {clients} clients and their "
                f"noise in {MODULUS_BITS} bits, got {self.bits}: they may come to {reach:,.0f}, "
                f"the limit is {2 ** (MODULUS_BITS - 1):,}; lower bits"
            )
        if clients > self.most_clients:
            raise ConfigError(
                f"privacy.secure-aggregation.bits must leave room for {clients} clients a round in "
                f"{MODULUS_BITS} bits, got {self.bits}: with up to {self.limit:,} each, that is "
                f"room for {self.most_clients:,}; lower bits, or federation.clients-per-round"
            )

    def quantise(self, values: Floats, uniform: Floats) -> NDArray[np.int64]:
        """Round to the grid, up or down by chance, so that the mean is what it was.

        The error of a coordinate is below a step, and its variance at most a quarter of the step's
        square.

        Args:
            values: [n], each within C, but for rounding of floats.
            uniform: [n] in [0, 1).

        Returns:
            [n], each within L.
        """
        rounded = np.floor(np.asarray(values, np.float64) / self.step + uniform)
        return np.clip(rounded, -self.limit, self.limit).astype(np.int64)


def to_words(numbers: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Take signed integers modulo 2^32."""
    return (numbers & 0xFFFF_FFFF).astype(np.uint32)


def from_words(words: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Read integers of either sign that were taken modulo 2^32.

    >>> from_words(to_words(np.array([-3, 5])))
    array([-3,  5])
    """
    return words.astype(np.int32, casting="unsafe").astype(np.int64)


def require_room_for_sums(clients: int) -> None:
    """Refuse more clients than have room for sums of losses and metrics.

    Raises:
        ConfigError: says how many have.
    """
    if clients > MOST_CLIENTS:
        raise ConfigError(
            f"privacy.sums 'secure' has room for {MOST_CLIENTS:,} clients, all of whom evaluate, "
            f"got {clients:,}; set privacy.sums to 'withheld', or start fewer"
        )


def require_addable(values: Floats, clients: int) -> None:
    """Refuse sums that have no room.

    Raises:
        ValueError: a number is not finite, or too large.
    """
    most = COARSE_MOST * COARSE / max(clients, 1)
    if not (np.isfinite(values).all() and np.abs(values).max(initial=0) < most):
        raise ValueError(f"sums must be finite and below {most:.3g} to be added securely")


def split_sums(values: Floats) -> NDArray[np.uint64]:
    """Lay out numbers as two words each, [M] -> [2 M]."""
    coarse = np.rint(values / COARSE)
    rest = np.rint((values - coarse * COARSE) / FINE)
    return np.concatenate([coarse, rest]).astype(np.int64).view(np.uint64)


def join_sums(words: NDArray[np.uint64]) -> Floats:
    """Read what `split_sums` laid out, or a sum of such, [2 M] -> [M].

    >>> join_sums(split_sums(np.array([-2.5, 1e9])) + split_sums(np.array([1.0, 1e9])))
    array([-1.5e+00,  2.0e+09])
    """
    numbers = words.view(np.int64).astype(np.float64)
    middle = len(numbers) // 2
    joined: Floats = numbers[:middle] * COARSE + numbers[middle:] * FINE
    return joined
