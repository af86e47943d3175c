"""Randomness as an argument: every stream is named, and derived from the run's seed alone.

A stream's key is a hash of the seed and a path of names such as ``("sampling", 3)`` or
``("shuffle", "client-07")``; two streams with different names are independent, and no stream
depends on what was drawn before it, in which process, or in which order.

Permutations come from a counter-based hash rather than from a generator object, so that an engine
can draw those of many clients in one call and still visit every client's rows in the same order.
"""

import hashlib
import random
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

UInt64Array = NDArray[np.uint64]

# SplitMix64: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def derive_key(seed: int, *names: str | int) -> int:
    """Hash the seed and a path of names to 64 bits, the same on every machine.

    >>> derive_key(0, "sampling", 1) == derive_key(0, "sampling", 1)
    True
    >>> derive_key(0, "a", "b") == derive_key(0, "ab")
    False
    """
    text = "\x1f".join([repr(int(seed)), *(repr(name) for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Make NumPy's generator for a named stream."""
    return np.random.default_rng(derive_key(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """Make PyTorch's CPU generator for a named stream."""
    generator = torch.Generator()
    generator.manual_seed(derive_key(seed, *names) & 0x7FFF_FFFF_FFFF_FFFF)
    return generator


def sample_names(names: list[str], count: int, seed: int, *stream: str | int) -> list[str]:
    """Draw `count` distinct names; the order of `names` does not matter.

    >>> sample_names(["b", "a", "c"], 2, 0, "x") == sample_names(["c", "b", "a"], 2, 0, "x")
    True
    """
    return random.Random(derive_key(seed, *stream)).sample(sorted(names), count)


def permutation_keys(stream_keys: UInt64Array, length: int) -> UInt64Array:
    """Hash every position of every stream, [K] -> [K, length]; sort a row for a permutation."""
    return _mix(stream_keys[:, None] + _steps(length))


@lru_cache(maxsize=8)
def _steps(length: int) -> UInt64Array:
    return np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN  # wraps, as it should


def _mix(bits: UInt64Array) -> UInt64Array:
    """Mix an array of one's own, in place."""
    for shift, factor in ((_SHIFT_1, _MIX_1), (_SHIFT_2, _MIX_2)):
        bits ^= bits >> shift
        bits *= factor
    bits ^= bits >> _SHIFT_3
    return bits


def fork_keys(keys: UInt64Array, *numbers: int) -> UInt64Array:
    """Derive a key per number path from each key, [K] -> [K]: such as of (round, epoch).

    >>> keys = np.array([1, 2], dtype=np.uint64)
    >>> len({*fork_keys(keys, 1, 2).tolist(), *fork_keys(keys, 2, 1).tolist()})
    4
    """
    for number in numbers:
        step = (number + 1) * int(_GOLDEN) & 0xFFFF_FFFF_FFFF_FFFF  # a scalar may not wrap
        keys = _mix(keys + np.uint64(step))
    return keys
