"""Where noise and secret samples come from.

An experiment's seed is sent to every client, so noise made from it could be subtracted again. A
deployed node, or server, takes fresh entropy from its system; a simulation, where nobody is to be
deceived, takes the seed, so that it repeats, and goes on exactly after a crash.
"""

from secrets import randbits

import numpy as np

from common.seeding import derive_key, numpy_generator


def secret_generator(seed: int | None, *names: str | int) -> np.random.Generator:
    """Make a generator that nobody else can make.

    Args:
        seed: a simulation's; None for fresh entropy of the system.
        names: what the stream is for; without a seed they do not matter.
    """
    if seed is None:
        return np.random.default_rng(randbits(128))
    return numpy_generator(seed, "privacy", *names)


def secret_key(seed: int | None, *names: str | int) -> int:
    """Make 64 bits that nobody else can make; as `secret_generator`."""
    return randbits(64) if seed is None else derive_key(seed, "privacy", *names)
