"""Exact samples of the discrete Gaussian, many at a time.

Canonne, Kamath & Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020,
Algorithms 1 to 3: every decision is a coin whose probability is a fraction, and a fraction is met
exactly. A coin is decided by the first 64 bits of a uniform number; where they leave it open, which
happens about once in 2^40 coins, by more of its bits and by whole numbers without limit.

The bits are AES-CTR's: of the system's entropy on a node, or of a simulation's seed.
"""

import math
import os
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]

KEY_BYTES, BLOCK_BYTES = 32, 16
# A probability in double precision is within this of the fraction, in units of 2^-64; and a rate
# that is within this of a whole number may be on its other side.
DOUBT, NEAR = 2.0**24, 2.0**-38
LARGEST_VARIANCE = 2**80
AT_ONCE, MOST_COINS = 8192, 16  # coins that are thrown together; of one place
EXTRA = 2.3  # numbers drawn per sample that is missing: about 0.48 become one


class Bits:
    """Random words that nobody can tell from chance without the key.

    Args:
        key: 32 bytes; left out, the system's entropy.
    """

    def __init__(self, key: bytes | None = None) -> None:
        cipher = Cipher(algorithms.AES(key or os.urandom(KEY_BYTES)), modes.CTR(bytes(BLOCK_BYTES)))
        self._stream = cipher.encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Draw 64 bits each, [count]."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), np.uint64)

    def below(self, limit: int, count: int) -> Numbers:
        """Draw whole numbers from 0 to below a limit of at most 2^62, each as likely, [count]."""
        most = 2**64 - 2**64 % limit
        words = self.words(count).copy()
        while len(late := np.flatnonzero(words > np.uint64(most - 1))):
            words[late] = self.words(len(late))
        return (words % np.uint64(limit)).astype(np.int64)

    def decide(self, probabilities: NDArray[np.float64], exact: Callable[[int], Fraction]) -> Flags:
        """Throw coins.

        Args:
            probabilities: [n], in double precision, to 2^-44.
            exact: place -> the probability as a fraction.

        Returns:
            [n], true with that probability.
        """
        words = self.words(len(probabilities))
        scaled = probabilities * 2.0**64
        distance = words.astype(np.float64) - scaled
        decided: Flags = distance < 0
        for place in np.flatnonzero(np.abs(distance) <= DOUBT).tolist():
            decided[place] = self._settle(int(words[place]), exact(place))
        return decided

    def _settle(self, first: int, probability: Fraction) -> bool:
        """Compare a uniform number, whose first 64 bits are drawn, with a fraction."""
        number, bits = first, 64
        while True:
            low, high = Fraction(number, 2**bits), Fraction(number + 1, 2**bits)
            if high <= probability:
                return True
            if low >= probability:
                return False
            number, bits = (number << 64) | int(self.words(1)[0]), bits + 64


def sample_discrete_gaussian(variance: int, count: int, bits: Bits) -> Numbers:
    """Draw from ``P(x) ~ exp(-x^2 / (2 variance))`` over the whole numbers, [count].

    Args:
        variance: sigma^2, whole; the samples' own variance is at most this, and close to it from
            1 on.
        count: how many.
        bits: where chance comes from.

    Raises:
        ValueError: the variance is out of range.
    """
    if not 0 <= variance <= LARGEST_VARIANCE:
        raise ValueError(f"variance must be from 0 to {LARGEST_VARIANCE}, got {variance}")
    found = np.zeros(count, np.int64)
    if variance == 0:
        return found
    scale, done = math.isqrt(variance) + 1, 0
    while done < count:
        candidates = _laplace(scale, int((count - done) * EXTRA) + 64, bits)
        kept = candidates[_accepted(candidates, variance, scale, bits)][: count - done]
        found[done : done + len(kept)] = kept
        done += len(kept)
    return found


def _accepted(candidates: Numbers, variance: int, scale: int, bits: Bits) -> Flags:
    """Keep a candidate y with probability ``exp(-(|y| - variance / t)^2 / (2 variance))``."""
    sizes = np.abs(candidates)

    def exact(place: int) -> Fraction:
        distance = Fraction(int(sizes[place])) - Fraction(variance, scale)
        return distance * distance / (2 * variance)

    # As whole part and rest, so that the difference loses no bits.
    whole = variance // scale
    rest = float(Fraction(variance, scale) - whole)
    distance = (sizes - whole).astype(np.float64) - rest
    return _exponential(distance * distance / (2.0 * variance), exact, bits)


def _laplace(scale: int, count: int, bits: Bits) -> Numbers:
    """Draw from ``P(x) ~ exp(-|x| / scale)`` (Algorithm 2); about `count` of them."""
    rest = bits.below(scale, count)

    def exact(place: int) -> Fraction:
        return Fraction(int(rest[place]), scale)

    rest = rest[_below_one(rest / scale, exact, bits)]
    whole, going = np.zeros(len(rest), np.int64), np.arange(len(rest))
    while len(going):
        # Several coins a time where few places are left: a call costs more than its coins.
        times = min(max(AT_ONCE // len(going), 1), MOST_COINS)
        coins = _below_one(np.ones(times * len(going)), lambda _: Fraction(1), bits)
        row = np.minimum.accumulate(coins.reshape(len(going), times), axis=1)
        whole[going] += row.sum(axis=1)
        going = going[row[:, -1]]
    sizes = rest + scale * whole
    negative = bits.words(len(sizes)) >> np.uint64(63) == 1
    kept: Flags = ~(negative & (sizes == 0))
    return np.asarray(np.where(negative, -sizes, sizes)[kept], np.int64)


def _exponential(rates: NDArray[np.float64], exact: Callable[[int], Fraction], bits: Bits) -> Flags:
    """Throw coins that are true with probability ``exp(-rate)`` (Algorithm 1), [n].

    Args:
        rates: [n], each >= 0, in double precision.
        exact: place -> the rate as a fraction.
        bits: where chance comes from.
    """
    wholes = np.floor(rates)
    for place in np.flatnonzero(np.abs(rates - np.rint(rates)) < NEAR).tolist():
        wholes[place] = math.floor(exact(place))
    result = np.ones(len(rates), bool)
    going, thrown = np.flatnonzero(wholes > 0), 0
    while len(going):  # exp(-rate) is exp(-1), as often as the rate has wholes, times the rest's
        passed = _below_one(np.ones(len(going)), lambda _: Fraction(1), bits)
        result[going[~passed]] = False
        thrown += 1
        going = going[passed & (wholes[going] > thrown)]
    left = np.flatnonzero(result)

    def rest(place: int) -> Fraction:
        return exact(int(left[place])) - int(wholes[left[place]])

    result[left] = _below_one(np.clip(rates - wholes, 0.0, 1.0)[left], rest, bits)
    return result


def _below_one(rates: NDArray[np.float64], exact: Callable[[int], Fraction], bits: Bits) -> Flags:
    """Throw such coins for rates from 0 to 1: count how often ``rate / k`` comes in a row."""
    counts, going, number = np.ones(len(rates), np.int64), np.arange(len(rates)), 1
    while len(going):
        chance = rates[going] / number
        going = going[bits.decide(chance, _divided(exact, going, number))]
        counts[going] += 1
        number += 1
    odd: Flags = counts % 2 == 1
    return odd


def _divided(
    exact: Callable[[int], Fraction], places: NDArray[np.intp], by: int
) -> Callable[[int], Fraction]:
    """Get the fractions of some places, divided."""
    return lambda place: exact(int(places[place])) / by
