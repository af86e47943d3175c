"""Whether two contenders did the same work: their trunks after the same rounds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulations.benchmarks.turns import Trunk

TOLERANCE = 1e-4  # of a trunk's length; rounding gives below 5e-5, rows in another order above 1e-3


@dataclass(frozen=True)
class Comparison:
    """A contender's trunk beside the plain loop's.

    Attributes:
        norm: its length.
        probe: its sum with alternating weights, which a permutation would change.
        largest_difference: of one parameter.
        relative_difference: length of the difference as a share of the plain trunk's length.
    """

    norm: float
    probe: float
    largest_difference: float
    relative_difference: float

    @property
    def is_same(self) -> bool:
        """Whether both did the same work, to float tolerance."""
        return self.relative_difference <= TOLERANCE  # False for NaN


def read_trunk(path: Path) -> Trunk:
    """Read what a contender saved."""
    return dict(np.load(path))


def compare_trunks(trunk: Trunk, plain: Trunk) -> Comparison:
    """Measure how far a trunk is from the plain loop's; infinitely where their shapes differ.

    >>> compare_trunks({"w": np.array([3.0, 4.0])}, {"w": np.array([3.0, 4.0])}).is_same
    True
    """
    own = flatten(trunk)
    probe = float(own @ np.cos(np.arange(len(own))))
    norm = float(np.linalg.norm(own))
    if {k: v.shape for k, v in trunk.items()} != {k: v.shape for k, v in plain.items()}:
        return Comparison(norm, probe, np.inf, np.inf)
    reference = flatten(plain)
    difference = own - reference
    return Comparison(
        norm,
        probe,
        float(np.abs(difference).max()),
        float(np.linalg.norm(difference) / np.linalg.norm(reference)),
    )


def flatten(trunk: Trunk) -> NDArray[np.float64]:
    """Put all parameters into one vector, in the order of their names."""
    return np.concatenate([trunk[name].ravel() for name in sorted(trunk)]).astype(np.float64)
