"""Agglomerative clustering with average linkage: ways to part things, or to put them in order."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
MOST_PARTS = 12


def partitions(likeness: Floats, smallest: int) -> Iterator[Labels]:
    """Cut the tree of average linkage into two branches, three, and so on.

    Branches that are too small, single strangers for the most part, join the branch that they are
    most like on average. A cut that leaves fewer than two branches is passed over.

    Args:
        likeness: [n, n], symmetric, at most 1, such as cosines.
        smallest: leaves that a branch must have.

    Yields:
        [n], the number of each thing's part; that of the first is 0.

    >>> likeness = np.array([[1, .9, 0, 0], [.9, 1, 0, 0], [0, 0, 1, .8], [0, 0, .8, 1]])
    >>> list(partitions(likeness, 2))
    [array([0, 0, 1, 1])]
    """
    if len(likeness) < 2:
        return
    from scipy.cluster.hierarchy import fcluster, linkage

    tree, seen = linkage(_distances(likeness), "average"), set()
    for count in range(2, min(len(likeness), MOST_PARTS) + 1):
        cut = fcluster(tree, count, "maxclust")
        branches = [np.flatnonzero(cut == number) for number in np.unique(cut)]
        large = [branch for branch in branches if len(branch) >= smallest]
        if len(large) < 2:
            continue
        labels = np.stack([likeness[:, b].mean(axis=1) for b in large]).argmax(axis=0)
        for number, branch in enumerate(large):
            labels[branch] = number
        labels = _from_zero(labels)
        if labels.tobytes() not in seen:
            seen.add(labels.tobytes())
            yield labels


def separation(likeness: Floats, labels: Labels) -> float:
    """Say how much more alike things of one part are than things of different parts.

    Args:
        likeness: [n, n].
        labels: [n], the part of each.

    Returns:
        The mean over pairs within a part minus that over pairs between; 0 where one is missing.
    """
    same = labels[:, None] == labels
    within = same & ~np.eye(len(labels), dtype=bool)
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
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering

    distances = _distances(likeness)
    ordered = optimal_leaf_ordering(linkage(distances, "average"), distances)
    order: list[int] = leaves_list(ordered).tolist()
    return order


def _distances(likeness: Floats) -> Floats:
    upper = np.triu_indices(len(likeness), 1)
    return np.maximum(0.0, 1.0 - likeness[upper])


def _from_zero(labels: Labels) -> Labels:
    """Number parts by their first member."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank: Labels = np.argsort(np.argsort(first))
    return rank[inverse]
