"""The rows of one or many clients in one set of tensors, to be gathered from by index."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batch_source import send
from client.prefetching import prefetched
from client.stacked_losses import TaskColumns
from common.dataset import Rows


class Gathered:
    """A matrix of rows that are not resident: what is asked for is made, and sent to the device.

    Args:
        make: numbers of rows, int64 [M] -> [M, ...].
        device: where rows are to be.
    """

    device = torch.device("cpu")  # where numbers of rows are to be

    def __init__(self, make: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self._make, self._goal = make, device

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Gather rows, int64 [K, B] -> [K, B, ...]."""
        found = self._make(rows.reshape(-1).to(self.device))
        return send(found.reshape(*rows.shape, *found.shape[1:]), self._goal)


@dataclass(frozen=True)
class RowStore:
    """Rows of all clients, one after another.

    Inputs, targets and labels of rows that are not resident are `Gathered`, in the same shapes.

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

    inputs: Tensor | Gathered
    targets: Tensor | Gathered
    labelled: Tensor | Gathered | None
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

    @classmethod
    def gathering(
        cls, rows: Rows, names: Sequence[str], columns: TaskColumns, device: torch.device
    ) -> "RowStore":
        """Leave the rows of one client where they are; arguments as for `of`."""
        masks = rows.labelled
        totals = {task: int(mask.sum()) for task, mask in masks.items()}
        taught = tuple(task for task, total in totals.items() if total)

        def make_inputs(index: Tensor) -> Tensor:
            return torch.cat([rows.inputs[name][index].flatten(1) for name in names], 1)

        def make_targets(index: Tensor) -> Tensor:
            targets = torch.zeros(len(index), columns.width)
            for task, mask in masks.items():
                encoded = columns.encode(task, rows.targets[task][index])
                targets[:, columns.columns[task]] = torch.where(
                    mask[index].unsqueeze(1), encoded, 0.0
                )
            return targets

        def make_labelled(index: Tensor) -> Tensor:
            return torch.stack([mask[index] for mask in masks.values()], 1).to(torch.float32)

        is_partial = any(totals[task] < len(rows) for task in taught)
        return cls(
            inputs=Gathered(make_inputs, device),
            targets=Gathered(make_targets, device),
            labelled=Gathered(make_labelled, device) if is_partial else None,
            tasks=tuple(masks),
            taught=taught,
            starts=np.zeros(1, np.int64),
            counts=np.array([len(rows)], np.int64),
            label_counts=np.array([list(totals.values())], np.int64),
        )

    @contextmanager
    def open_inputs(self, batches: Sequence[Tensor]) -> Iterator[Iterator[Tensor]]:
        """Take the inputs of batches, one after another, int64 [K, B] -> [K, B, D].

        Rows that are not resident are gathered in the background, a batch ahead.
        """
        inputs = (self.inputs[rows] for rows in batches)
        if isinstance(self.inputs, Tensor):
            yield inputs
            return
        with prefetched(inputs) as ahead:
            yield ahead
