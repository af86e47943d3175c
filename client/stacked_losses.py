"""Task losses of many clients at once, on outputs that lie side by side.

All tasks' outputs are columns of one tensor [K, B, O], and targets lie in the same columns in the
form in which a gradient reads them: classes one-hot, everything else as it is. The gradient of each
loss in its output is then ``(link(output) - target) * share``, with softmax, sigmoid or nothing as
the link, for all tasks at once.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

MOST_CLASSES = 256  # one-hot targets of more would outweigh the rows that they belong to


@dataclass(frozen=True)
class StackedLoss:
    """One kind of loss; `common.losses` defines it.

    Attributes:
        terms: (output [K, B, w], target [K, B, w]) turns the output, in place, into terms; a row's
            loss is their sum times `scale`.
        link: turns an output, in place, into what the gradient subtracts the target from.
        scale: number of outputs -> factor of a row's terms.
        slope: factor of the gradient ``link(output) - target``, beside `scale`.
        joins: whether terms and link treat every column by itself, so that tasks side by side can
            share a call.
    """

    terms: Callable[[Tensor, Tensor], object]
    link: Callable[[Tensor], object]
    scale: Callable[[int], float]
    slope: float = 1.0
    joins: bool = True


def _cross_entropy(output: Tensor, target: Tensor) -> None:
    torch.mul(output.log_softmax(2), target, out=output).neg_()


def _binary_cross_entropy(output: Tensor, target: Tensor) -> None:
    torch.sub(softplus(output), output * target, out=output)  # log(1 + e^z) - z y


def _squared_error(output: Tensor, target: Tensor) -> None:
    output.sub_(target)
    output.mul_(output)


def _softmax(output: Tensor) -> None:
    output.copy_(output.softmax(2))


def _identity(output: Tensor) -> None:
    pass


def _mean(width: int) -> float:
    return 1.0 / width


STACKED_LOSSES: dict[str, StackedLoss] = {
    "multiclass": StackedLoss(_cross_entropy, _softmax, lambda width: 1.0, joins=False),
    "binary": StackedLoss(_binary_cross_entropy, torch.sigmoid_, _mean),
    "multilabel": StackedLoss(_binary_cross_entropy, torch.sigmoid_, _mean),
    "regression": StackedLoss(_squared_error, _identity, _mean, slope=2.0),
}


class TaskColumns:
    """Where the tasks' outputs lie side by side, and their losses there.

    Args:
        kinds: task name -> kind, in the order of the columns.
        widths: task name -> number of outputs.

    Attributes:
        columns: task name -> its columns.
        width: O, their number.
    """

    def __init__(self, kinds: Mapping[str, str], widths: Mapping[str, int]) -> None:
        self.kinds = dict(kinds)
        self.columns: dict[str, slice] = {}
        start = 0
        for task in kinds:
            self.columns[task] = slice(start, start + widths[task])
            start += widths[task]
        self.width = start
        self._groups: list[StackedLoss] = []  # tasks that share their calls
        self._widths: list[int] = []
        for task, kind in kinds.items():
            loss = STACKED_LOSSES[kind]
            if loss.joins and self._groups and self._groups[-1].terms is loss.terms:
                self._widths[-1] += widths[task]
            else:
                self._groups.append(loss)
                self._widths.append(widths[task])

    def encode(self, task: str, targets: Tensor) -> Tensor:
        """Lay out a task's targets, as in `Rows.targets`, in its columns: float32 [N, width]."""
        width = self._width(task)
        if self.kinds[task] == "multiclass":
            return one_hot(targets, width).to(torch.float32)
        return targets.reshape(-1, width)

    def spread(self, weights: Mapping[str, float]) -> Tensor:
        """Lay task weights out over the columns, with the gradients' constant factors: [T, O].

        Args:
            weights: task name -> w_t, in the order of the rows.
        """
        matrix = torch.zeros(len(weights), self.width)
        for row, (task, weight) in enumerate(weights.items()):
            loss = STACKED_LOSSES[self.kinds[task]]
            matrix[row, self.columns[task]] = weight * loss.scale(self._width(task)) * loss.slope
        return matrix

    def owners(self, tasks: Sequence[str], taught: Collection[str]) -> tuple[Tensor, Tensor]:
        """Say what `terms` add up to.

        Args:
            tasks: T of them.
            taught: those with labels.

        Returns:
            int64 [O], the place of each column's task among `tasks`, T for what is not taught; and
            float32 [O], the factor of each column's terms.
        """
        owners = torch.full((self.width,), len(tasks))
        scales = torch.ones(self.width)
        for place, task in enumerate(tasks):
            if task in taught:
                owners[self.columns[task]] = place
                scale = STACKED_LOSSES[self.kinds[task]].scale(self._width(task))
                scales[self.columns[task]] = scale
        return owners, scales

    def slope(self, outputs: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """Turn outputs, in place, into the gradient of the summed loss in them, [K, B, O].

        Args:
            outputs: [K, B, O].
            targets: [K, B, O] of `encode`.
            share: [K, B, O], or [O] where all rows count alike: what one row's loss counts.
        """
        for loss, part in zip(self._groups, self._split(outputs), strict=True):
            loss.link(part)
        return outputs.sub_(targets).mul_(share)

    def terms(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Turn outputs, in place, into what adds up to losses; arguments as in `slope`."""
        parts = zip(self._groups, self._split(outputs), self._split(targets), strict=True)
        for loss, part, target in parts:
            loss.terms(part, target)
        return outputs

    def cut(self, outputs: Tensor) -> dict[str, Tensor]:
        """Cut [K, B, O] into task name -> [K, B, outputs]."""
        return {task: outputs[:, :, place] for task, place in self.columns.items()}

    def _split(self, matrix: Tensor) -> Sequence[Tensor]:
        """Cut [K, B, O] into the columns of each group."""
        return matrix.split_with_sizes(self._widths, 2)

    def _width(self, task: str) -> int:
        place = self.columns[task]
        return int(place.stop - place.start)


def count_taught(counted: Tensor, size: int) -> Tensor:
    """Count the rows that teach each task in each batch, [K, S, T].

    Args:
        counted: float32 [K, S * B, T], 1 where a row counts for a task.
        size: B, rows of a batch.
    """
    clients, rows, tasks = counted.shape
    return counted.view(clients, rows // size, size, tasks).sum(2)


def share_out(counted: Tensor, taught: Tensor, spread: Tensor) -> Tensor:
    """Divide each task's weight among the rows of a batch that teach it, [K, S * B, O].

    So the gradient is that of ``sum_t w_t * L_t`` with L_t the mean over the rows of the client's
    batch that are labelled for the task (`common.losses`).

    Args:
        counted: float32 [K, S * B, T], 1 where a row counts for a task.
        taught: [K, S, T] of `count_taught`.
        spread: [T, O] of `TaskColumns.spread`.
    """
    size = counted.shape[1] // taught.shape[1]
    each = taught.clamp(min=1).reciprocal_().repeat_interleave(size, 1)
    return (counted * each) @ spread


def pad_rows(counted: Tensor, size: int) -> Tensor:
    """Append rows that count for nothing, up to a whole number of batches."""
    missing = -counted.shape[1] % size
    return torch.nn.functional.pad(counted, (0, 0, 0, missing)) if missing else counted
