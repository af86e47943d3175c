"""The order in which a client visits its rows: shuffled anew each epoch, balanced over tasks."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from common.seeding import derive_key, permutation_keys

Index = NDArray[np.int64]


def label_patterns(labelled: Mapping[str, Tensor]) -> Index:
    """Number the rows by which tasks they carry labels for: int64 [N], equal where alike."""
    masks = np.stack([mask.numpy() for mask in labelled.values()])  # [T, N]
    return np.unique(masks, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def epoch_order(patterns: Index, balance: str, seed: int, *stream: str | int) -> Index:
    """Shuffle a client's rows for one epoch.

    With ``balance = "tasks"`` every stretch of the order holds the label patterns in nearly the
    proportion of the whole: the i-th of a pattern's n rows, shuffled, stands at ``(i + u) / n``
    with one random u in [0, 1) per pattern. So a batch of B rows holds each pattern's share of B
    to within one row, and no task is bunched into a few batches. Where all rows carry the same
    labels this is a plain shuffle.

    Args:
        patterns: [N] from `label_patterns`.
        balance: "tasks" or "none".
        seed: the run's seed.
        stream: names the random stream, such as ("shuffle", client, round, epoch).

    Returns:
        int64 [N], a permutation of the rows.
    """
    keys = permutation_keys(
        np.array([derive_key(seed, *stream)], dtype=np.uint64), len(patterns) + 1
    )[0]
    keys, offset_keys = keys[:-1], keys[-1:]
    kinds = int(patterns.max()) + 1 if len(patterns) else 0
    if balance == "none" or kinds < 2:
        return np.argsort(keys, kind="stable").astype(np.int64)
    shuffled = np.lexsort((keys, patterns))  # pattern after pattern, shuffled within
    counts = np.bincount(patterns, minlength=kinds)
    within = np.arange(len(patterns)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = permutation_keys(offset_keys, kinds)[0] / 2.0**64  # [kinds] in [0, 1)
    position = (within + np.repeat(offsets, counts)) / np.repeat(counts, counts)
    return np.asarray(shuffled[np.argsort(position, kind="stable")], dtype=np.int64)
