"""The rows of one or many clients in one set of tensors, to be gathered from by index."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.stacked_losses import TaskColumns
from common.dataset import Rows


@dataclass(frozen=True)
class RowStore:
    """Rows of all clients, one after another.

    Attributes:
        inputs: float32 [N, D], all named inputs flattened and side by side, as `MLP` reads
            them.
        targets: float32 [N, O] in the columns of `client.stacked_losses.TaskColumns`; 0 where a
            row has no label.
        tasks: T tasks, those that any of the clients holds.
        taught: those of them that have a label.
        labelled: float32 [N, T], 1 where a row carries a label of a task; None where every row
            carries labels of all tasks of `taught`.
        starts: int64 [clients], the number of each one's first row.
        counts: int64 [clients], each one's number of rows.
        label_counts: int64 [clients, T], each one's labelled rows.
    """

    inputs: Tensor
    targets: Tensor
    labelled: Tensor | None
    tasks: tuple[str, ...]
    taught: tuple[str, ...]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    label_counts: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[Rows], names: Sequence[str], columns: TaskColumns) -> "RowStore":
        """Store the rows of clients.

        Args:
            parts: each client's rows.
            names: input names, in the order in which the trunk reads them.
            columns: where the tasks' targets go.
        """
        rows = Rows.join(parts)
        inputs = rows.side_by_side(names)
        counts = np.array([len(p) for p in parts], np.int64)
        owners = np.repeat(np.arange(len(parts)), counts)
        targets = inputs.new_zeros(len(inputs), columns.width)
        label_counts = np.zeros((len(parts), len(rows.labelled)), np.int64)
        for place, (task, mask) in enumerate(rows.labelled.items()):
            encoded = columns.encode(task, rows.targets[task])
            # 0 times what stands under the mask must be 0, whatever stands there.
            targets[:, columns.columns[task]] = torch.where(mask.unsqueeze(1), encoded, 0.0)
            label_counts[:, place] = np.bincount(owners[mask.cpu().numpy()], minlength=len(parts))
        totals = dict(zip(rows.labelled, label_counts.sum(0).tolist(), strict=True))
        taught = tuple(task for task, total in totals.items() if total)
        labelled = None
        if any(totals[task] < len(inputs) for task in taught):
            labelled = torch.stack(list(rows.labelled.values()), 1).to(torch.float32)
        starts = np.cumsum(counts) - counts
        tasks = tuple(rows.labelled)
        return cls(inputs, targets, labelled, tasks, taught, starts, counts, label_counts)
