"""Which rows a client visits in an epoch where every batch is to hold its classes in equal share.

Class-balanced sampling draws a class, then one of its rows (Kang et al., "Decoupling representation
and classifier for long-tailed recognition", ICLR 2020, eq. 1 with q = 0): rare classes come up more
often than once an epoch, common ones less. With several tasks the draw begins with a task, each
that the client has labels of as likely as another. Tasks without classes, which are regression and
multilabel tasks, count as tasks of one class.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.dataset import Rows
from common.sections.rows import WITH_CLASSES
from common.seeding import UInt64Array, permutation_keys


@dataclass(frozen=True)
class ClassGroups:
    """Rows of one client, grouped by the classes that they carry.

    Attributes:
        of: int64 [n], the group of each row.
        shares: float64 [G], the share that each group has in an epoch; they add up to 1.
    """

    of: NDArray[np.int64]
    shares: NDArray[np.float64]

    def order(self, keys: UInt64Array, offset_keys: UInt64Array) -> NDArray[np.int64]:
        """Fill an epoch's n places with rows.

        Each group gets its share of the places, rounded up or down by chance so that its mean is
        the share. Its rows fill them shuffled, over and over where there are more places than rows.
        As in `client.batches.balanced_order`, a group's i-th of m places is at ``(i + u) / m``, so
        that a batch of B rows holds the group's share of B to within about one row.

        Args:
            keys: [n] random numbers that shuffle.
            offset_keys: [1 or more]; the first draws the rounding and the groups' offsets.

        Returns:
            int64 [n], numbers of rows, some of them more than once.
        """
        places, groups = len(self.of), len(self.shares)
        rounding, *drawn = permutation_keys(offset_keys[:1], groups + 1)[0] / 2.0**64
        bounds = np.concatenate([[0.0], np.cumsum(self.shares * places)])
        bounds[-1] = places  # whatever the sum was rounded to
        taken = np.diff(np.floor(bounds + rounding)).astype(np.int64)  # [G]
        shuffled = np.lexsort((keys, self.of))  # group after group, shuffled within
        sizes = np.bincount(self.of, minlength=groups)
        begins = np.repeat(np.cumsum(sizes) - sizes, taken)
        within = np.arange(places) - np.repeat(np.cumsum(taken) - taken, taken)
        rows = shuffled[begins + within % np.repeat(sizes, taken)]
        position = (within + np.repeat(drawn, taken)) / np.repeat(taken, taken)
        return np.asarray(rows[np.argsort(position, kind="stable")], dtype=np.int64)


def group_classes(rows: Rows, kinds: Mapping[str, str]) -> ClassGroups | None:
    """Group a client's rows by their classes, and share an epoch out to the groups.

    Row i is drawn with ``p_i = mean over tasks t of 1 / (C_t n_tc)``, where the client has C_t
    classes in its labels of t, and n_tc rows of i's own class; 0 where i has no label of t.

    Args:
        rows: to be trained on.
        kinds: task -> its kind.

    Returns:
        None where there is no label at all.
    """
    codes = [
        _classes(rows, task, kinds[task]) for task, mask in rows.labelled.items() if mask.any()
    ]
    if not codes:
        return None
    chances = np.zeros(len(rows))
    for own in codes:
        classes, places, counts = np.unique(own, return_inverse=True, return_counts=True)
        held = int((classes >= 0).sum())
        chances += np.where(own >= 0, 1.0 / (held * counts[places.reshape(-1)]), 0.0)
    of = np.unique(np.stack(codes), axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)
    shares = np.bincount(of, weights=chances / len(codes)).astype(np.float64)
    return ClassGroups(of, shares)


def _classes(rows: Rows, task: str, kind: str) -> NDArray[np.int64]:
    """Number the class of every row, [n]; -1 where it has no label."""
    mask = rows.labelled[task].cpu().numpy()
    if kind not in WITH_CLASSES:
        return np.where(mask, 0, -1)
    return np.where(mask, rows.targets[task].cpu().numpy().astype(np.int64), -1)
