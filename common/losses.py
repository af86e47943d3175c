"""Task losses, one value per row, and their weighted sum.

A loss is taken over labelled rows only (`output[mask]`): dividing by the sum of a mask that can be
0 gives NaN gradients even where the task is left out afterwards.
"""

import functools
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor

from common.errors import ShapeError


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Multiclass: [N, classes] logits, int64 [N] -> [N], in nats."""
    return F.cross_entropy(output, target, reduction="none")


def binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Binary: [N, 1] logits, float32 [N] in {0, 1} -> [N], in nats."""
    return F.binary_cross_entropy_with_logits(output[:, 0], target, reduction="none")


def multilabel_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Multilabel: [N, labels] logits, float32 [N, labels] -> [N], the mean over labels, in nats."""
    return F.binary_cross_entropy_with_logits(output, target, reduction="none").mean(dim=1)


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    """Regression: [N, outputs] both -> [N], the mean over outputs, in squared target units."""
    return (output - target).square().mean(dim=1)


ROW_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "multiclass": cross_entropy,
    "binary": binary_cross_entropy,
    "multilabel": multilabel_cross_entropy,
    "regression": squared_error,
}


def combine_losses(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weigh the task losses and sum them: ``L = sum_t w_t * L_t`` over the tasks present.

    Args:
        losses: task name -> [] mean loss over labelled rows; tasks without a label in the batch
            are absent, so they pull on nothing.
        weights: task name -> w_t >= 0, the same on every client of a round.

    Returns:
        [] the weighted sum.

    Raises:
        ShapeError: no task is present.

    >>> combine_losses({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"a": 1.0, "b": 0.5})
    tensor(3.5000)
    """
    if not losses:
        raise ShapeError("no task has a label in this batch; there is no loss to combine")
    # A weight of 1, the ordinary case, costs no operation.
    terms = [loss if weights[name] == 1 else weights[name] * loss for name, loss in losses.items()]
    return functools.reduce(torch.add, terms)
