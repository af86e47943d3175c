"""Task losses of many clients at once: their values and, by hand, their gradients.

Outputs are [K, B, outputs] and every row carries a share of the loss: ``w_t / n`` for the n rows
of its client that are labelled for the task in this batch, 0 for the others and for padding. So the
gradient is that of ``sum_t w_t * L_t`` with L_t the mean over labelled rows (`common.losses`).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

# (output [K, B, outputs], target, share [K, B] or a number for all rows)
#   -> (loss per row [K, B], gradient [K, B, outputs])
StackedLoss = Callable[[Tensor, Tensor, Tensor | float], tuple[Tensor, Tensor]]


def _per_output(share: Tensor | float) -> Tensor | float:
    return share if isinstance(share, float) else share.unsqueeze(2)


def cross_entropy(output: Tensor, target: Tensor, share: Tensor | float) -> tuple[Tensor, Tensor]:
    """Multiclass, target int64 [K, B]: the gradient is softmax minus one-hot."""
    logs = output.log_softmax(2)
    chosen = target.unsqueeze(2)
    losses = logs.gather(2, chosen).squeeze(2).neg_()
    slope = logs.exp_().scatter_add_(2, chosen, output.new_full((1, 1, 1), -1.0).expand_as(chosen))
    return losses, slope.mul_(_per_output(share))


def binary_cross_entropy(
    output: Tensor, target: Tensor, share: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Binary, target float32 [K, B]: the gradient is sigmoid minus target."""
    truth = target.unsqueeze(2)
    losses = binary_cross_entropy_with_logits(output, truth, reduction="none").squeeze(2)
    return losses, output.sigmoid().sub_(truth).mul_(_per_output(share))


def multilabel_cross_entropy(
    output: Tensor, target: Tensor, share: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Multilabel, target float32 [K, B, labels]: the mean over labels."""
    losses = binary_cross_entropy_with_logits(output, target, reduction="none").mean(2)
    slope = output.sigmoid().sub_(target).mul_(_per_output(share))
    return losses, slope.div_(output.shape[2])


def squared_error(output: Tensor, target: Tensor, share: Tensor | float) -> tuple[Tensor, Tensor]:
    """Regression, target float32 [K, B, outputs]: the mean over outputs."""
    error = output - target
    losses = error.square().mean(2)
    return losses, error.mul_(_per_output(share)).mul_(2 / output.shape[2])


STACKED_LOSSES: dict[str, StackedLoss] = {
    "multiclass": cross_entropy,
    "binary": binary_cross_entropy,
    "multilabel": multilabel_cross_entropy,
    "regression": squared_error,
}


def share_out(labelled: Tensor | None, weight: float, rows: Tensor) -> Tensor | float:
    """Divide a task's weight among each client's labelled rows.

    Args:
        labelled: bool [K, B]; None where every row is labelled.
        weight: w_t.
        rows: [K, B]; only its shape is read.

    Returns:
        float32 [K, B], or one number where all rows count alike.
    """
    if labelled is None:
        return weight / rows.shape[1]
    counts = labelled.sum(1, keepdim=True).clamp(min=1)
    return labelled.to(torch.float32) * (weight / counts)
