"""A few of a client's training rows, drawn so that fewer are always among more."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from client.batches import Index, balanced_order
from common.cells import count_rows
from common.errors import ConfigError
from common.preparation import PreparedClient
from common.seeding import derive_key, permutation_keys
from common.targets import Target


def keep_rows(prepared: PreparedClient, count: int | None, seed: int) -> PreparedClient:
    """Keep so many of a client's training rows; validation and test rows stay.

    Rows are drawn in the proportion of what they carry: which tasks have a label, and its class.
    A task without a label among the rows that are kept is left out, as if the client lacked it.

    Args:
        prepared: the client's rows; scalings are fitted afterwards, on what is kept alone.
        count: how many; None for all.
        seed: draws them; the rows of a smaller count are among those of a larger one.

    Raises:
        ConfigError: there are fewer.
    """
    train = prepared.splits["train"]
    if count is None or count == len(train):
        return prepared
    if count > len(train):
        raise ConfigError(
            f"--rows must be at most {len(train)}, the training rows of client '{prepared.name}', "
            f"got {count}; ask for fewer, or for all"
        )
    kept = np.sort(train[_drawing_order(prepared, seed)[:count]])
    targets = {
        task: target for task, target in prepared.targets.items() if target.labelled[kept].any()
    }
    lost = [task for task in prepared.targets if task not in targets]
    notes = [
        f"task '{t}' left out: none of the {count_rows(count)} drawn has a label" for t in lost
    ]
    return replace(
        prepared,
        splits={**prepared.splits, "train": kept},
        targets=targets,
        notes=(*prepared.notes, *notes),
    )


def _drawing_order(prepared: PreparedClient, seed: int) -> Index:
    """Order the training rows so that every beginning holds each kind of row in its share."""
    train = prepared.splits["train"]
    kinds = np.unique(_marks(prepared.targets, train), axis=1, return_inverse=True)[1]
    stream = np.array([derive_key(seed, "few-rows", prepared.name)], np.uint64)
    keys = permutation_keys(stream, len(train) + 1)[0]
    return balanced_order(kinds.reshape(-1).astype(np.int64), keys[:-1], keys[-1:])


def _marks(targets: Mapping[str, Target], rows: Index) -> Index:
    """Mark what rows carry, [T, rows]: -1 no label, a class, or 0 for a label of another kind."""
    marks = []
    for target in targets.values():
        classes = target.values[rows] if target.values.ndim == 1 else 0
        marks.append(np.where(target.labelled[rows], classes, -1))
    return np.stack(marks).astype(np.int64)
