"""Agglomerative clustering with average linkage: what is alike in two halves, or in an order."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Facts = NDArray[np.bool_]


def split_in_two(likeness: Floats, smallest: int) -> Facts | None:
    """Find the topmost fork of the tree of average linkage whose two branches are large enough.

    What the fork does not hold, single strangers for the most part, goes to the branch that it is
    more like on average.

    Args:
        likeness: [n, n], symmetric, at most 1, such as cosines.
        smallest: leaves that a branch must have.

    Returns:
        [n], which of the two, False for the first; None where no fork is large enough.

    >>> likeness = np.array([[1, .9, 0, 0], [.9, 1, 0, 0], [0, 0, 1, .8], [0, 0, .8, 1]])
    >>> split_in_two(likeness, 2)
    array([False, False,  True,  True])
    """
    branches: list[list[int]] = [[n] for n in range(len(likeness))]
    fork: tuple[list[int], list[int]] | None = None
    for one, two in _tree(likeness)[:, :2].astype(int).tolist():
        left, right = branches[one], branches[two]
        if min(len(left), len(right)) >= smallest:
            fork = (left, right)
        branches.append(left + right)
    if fork is None:
        return None
    left, right = fork
    half: Facts = likeness[:, right].mean(axis=1) > likeness[:, left].mean(axis=1)
    half[left], half[right] = False, True
    return ~half if half[0] else half


def separation(likeness: Floats, half: Facts) -> float:
    """Say how much more alike the members of one half are than those of different halves.

    Args:
        likeness: [n, n].
        half: [n], which of the two.

    Returns:
        The mean over pairs within a half minus that over pairs between; 0 where one is missing.
    """
    same = half[:, None] == half
    within = same & ~np.eye(len(half), dtype=bool)
    if not within.any() or same.all():
        return 0.0
    return float(likeness[within].mean() - likeness[~same].mean())


def order_alike(likeness: Floats) -> list[int]:
    """Order things so that those alike are neighbours: the leaves of the tree, turned to fit.

    >>> order_alike(np.array([[1, 0, .9], [0, 1, .1], [.9, .1, 1]]))
    [1, 2, 0]
    """
    if len(likeness) < 3:
        return list(range(len(likeness)))
    from scipy.cluster.hierarchy import leaves_list, optimal_leaf_ordering

    ordered = optimal_leaf_ordering(_tree(likeness), _distances(likeness))
    order: list[int] = leaves_list(ordered).tolist()
    return order


def _tree(likeness: Floats) -> Floats:
    """Grow the tree, [n - 1, 4] as SciPy describes it; no rows for one leaf."""
    if len(likeness) < 2:
        return np.zeros((0, 4))
    from scipy.cluster.hierarchy import linkage

    return np.asarray(linkage(_distances(likeness), "average"), np.float64)


def _distances(likeness: Floats) -> Floats:
    upper = np.triu_indices(len(likeness), 1)
    return np.maximum(0.0, 1.0 - likeness[upper])
