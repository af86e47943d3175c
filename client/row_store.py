"""The rows of one or many clients in one set of tensors, to be gathered from by index."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.dataset import Rows


@dataclass(frozen=True)
class RowStore:
    """Rows of all clients, one after another.

    Attributes:
        inputs: float32 [N, D], all named inputs flattened and side by side, as `MLPTrunk` reads
            them.
        targets: task name -> as in `Rows.targets`; 0 where a row has no label.
        labelled: task name -> bool [N].
        starts: client by client, the number of its first row.
        counts: client by client, its number of rows.
        complete: tasks for which every row carries a label.
        label_counts: task name -> float32 [clients], each one's labelled rows.
    """

    inputs: Tensor
    targets: dict[str, Tensor]
    labelled: dict[str, Tensor]
    starts: list[int]
    counts: list[int]
    complete: frozenset[str]
    label_counts: dict[str, Tensor]

    @classmethod
    def of(cls, parts: Sequence[Rows], names: Sequence[str]) -> "RowStore":
        """Store the rows of clients.

        Args:
            parts: each client's rows; one client's are not copied.
            names: input names, in the order in which the trunk reads them.
        """
        inputs = _join([_join([p.inputs[n].flatten(1) for n in names], 1) for p in parts])
        samples = {task: values for p in parts for task, values in p.targets.items()}
        targets = {
            task: _join([p.targets.get(task, _blank(p, like)) for p in parts])
            for task, like in samples.items()
        }
        labelled = {
            task: _join([p.labelled.get(task, _blank(p)) for p in parts]) for task in samples
        }
        counts = [len(p) for p in parts]
        starts = [0, *itertools.accumulate(counts)][:-1]
        complete = frozenset(task for task, mask in labelled.items() if bool(mask.all()))
        for task in labelled.keys() - complete:
            # 0 times what stands under the mask must be 0, whatever stands there.
            targets[task] = _where(labelled[task], targets[task])
        label_counts = {
            task: torch.tensor(
                [float(p.labelled[task].sum()) if task in p.labelled else 0.0 for p in parts],
                device=inputs.device,
            )
            for task in labelled
        }
        return cls(inputs, targets, labelled, starts, counts, complete, label_counts)


def _join(parts: list[Tensor], dimension: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dimension)


def _blank(rows: Rows, like: Tensor | None = None) -> Tensor:
    """Make the targets, or without `like` the label mask, of a task that a client lacks."""
    device = next(iter(rows.inputs.values())).device
    if like is None:
        return torch.zeros(len(rows), dtype=torch.bool, device=device)
    return torch.zeros((len(rows), *like.shape[1:]), dtype=like.dtype, device=device)


def _where(labelled: Tensor, targets: Tensor) -> Tensor:
    mask = labelled.reshape(-1, *[1] * (targets.dim() - 1))
    return torch.where(mask, targets, torch.zeros_like(targets))
