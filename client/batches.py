"""The order in which clients visit their rows: shuffled anew each epoch, balanced if wanted."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.class_groups import ClassGroups, group_classes
from common.dataset import Rows
from common.experiment import Experiment
from common.seeding import UInt64Array, derive_key, fork_keys, permutation_keys

Index = NDArray[np.int64]
Patterns = Index | ClassGroups | None  # of one client's rows
LAST = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def row_patterns(rows: Rows, experiment: Experiment) -> Patterns:
    """Tell a client's rows apart by what its batches are to be balanced over."""
    if experiment.training.balance == "classes":
        kinds = {name: task.kind for name, task in experiment.tasks.items()}
        return group_classes(rows, kinds)
    return label_patterns(rows.labelled)


def label_patterns(labelled: Mapping[str, Tensor]) -> Index | None:
    """Number the rows by which tasks they carry labels for: int64 [N]; None where all are alike."""
    masks = np.stack([mask.cpu().numpy() for mask in labelled.values()])  # [T, N]
    if (masks == masks[:, :1]).all():
        return None
    return np.unique(masks, axis=1, return_inverse=True)[1].reshape(-1).astype(np.int64)


def shuffle_key(seed: int, client: str) -> int:
    """Derive the key of a client's shuffles from the run's seed."""
    return derive_key(seed, "shuffle", client)


def epoch_order(
    rows: int, patterns: Patterns, balance: str, key: int, round_number: int, epoch: int
) -> Index:
    """Shuffle one client's rows: `epoch_orders` for a client alone."""
    keys, counts = np.array([key], np.uint64), np.array([rows])
    order: Index = epoch_orders(keys, counts, [patterns], balance, round_number, epoch)[0]
    return order


def epoch_orders(
    client_keys: UInt64Array,
    counts: Index,
    patterns: Sequence[Patterns],
    balance: str,
    round_number: int,
    epoch: int,
) -> Index:
    """Shuffle the rows of K clients for one epoch.

    A client's order depends on its key, round and epoch alone, not on the other clients.

    Args:
        client_keys: [K], of `shuffle_key`.
        counts: [K], numbers of rows n_k.
        patterns: each client's, from `row_patterns`.
        balance: "tasks", see `balanced_order`; "classes", see `ClassGroups`; or "none".
        round_number: names the stream.
        epoch: names the stream.

    Returns:
        int64 [K, max n_k]: row k begins with a permutation of ``range(n_k)``, under "classes" with
        n_k numbers of its rows; the rest is padding by numbers of rows that do not exist at that
        client.
    """
    longest = int(counts.max())
    keys = permutation_keys(fork_keys(client_keys, round_number, epoch), longest + 1)
    hashes = keys[:, :-1]
    if counts.min() < longest:
        hashes = np.where(np.arange(longest) < counts[:, None], hashes, LAST)
    orders: Index = np.argsort(hashes, axis=1, kind="stable")
    for row, own in enumerate(patterns):
        count = int(counts[row])
        if isinstance(own, ClassGroups):
            orders[row, :count] = own.order(keys[row, :count], keys[row, count:])
        elif balance == "tasks" and own is not None:
            orders[row, :count] = balanced_order(own, keys[row, :count], keys[row, count:])
    return orders


def balanced_order(patterns: Index, keys: UInt64Array, offset_keys: UInt64Array) -> Index:
    """Order rows so that every stretch holds the label patterns in the proportion of the whole.

    The i-th of a pattern's n rows, shuffled, stands at ``(i + u) / n`` with one random u in [0, 1)
    per pattern. So a batch of B rows holds each pattern's share of B to within one row, and no task
    is bunched into a few batches.

    Args:
        patterns: [n] from `label_patterns`.
        keys: [n] random numbers that shuffle.
        offset_keys: [1 or more]; the first draws the patterns' offsets.

    Returns:
        int64 [n], a permutation.
    """
    kinds = int(patterns.max()) + 1
    shuffled = np.lexsort((keys, patterns))  # pattern after pattern, shuffled within
    counts = np.bincount(patterns, minlength=kinds)
    within = np.arange(len(patterns)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = permutation_keys(offset_keys[:1], kinds)[0] / 2.0**64  # [kinds] in [0, 1)
    position = (within + np.repeat(offsets, counts)) / np.repeat(counts, counts)
    return np.asarray(shuffled[np.argsort(position, kind="stable")], dtype=np.int64)
