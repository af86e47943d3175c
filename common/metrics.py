"""Metrics as sums that add up over clients, and the figures they yield.

A client never sends a figure, only sums and counts; the server adds them and divides once, at the
end. So the figure of a federation is that of all its rows together, except for `auroc`, which is no
sum over rows: there it is the mean over the clients that hold both classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.dataset import TargetScale

Sums = list[float]


def predicted_classes(kind: str, output: Tensor) -> Tensor:
    """Turn logits into decisions: [N, outputs] -> int64 [N] (multiclass) or bool [N, labels]."""
    return output.argmax(dim=1) if kind == "multiclass" else output > 0


def _accuracy_sums(kind: str, output: Tensor, target: Tensor) -> Sums:
    decided = predicted_classes(kind, output)
    right = decided == target.reshape(decided.shape).to(decided.dtype)
    return [float(right.sum()), float(right.numel())]


def _f1_sums(kind: str, output: Tensor, target: Tensor) -> Sums:
    decided = predicted_classes(kind, output)
    if kind == "multiclass":
        classes = torch.arange(output.shape[1], device=output.device)
        decided, truth = decided[:, None] == classes, target[:, None] == classes
    else:
        truth = target.reshape(decided.shape).bool()
    hits = (decided & truth).sum(0)  # [C]
    return [float(v) for v in torch.cat([hits, decided.sum(0) - hits, truth.sum(0) - hits])]


def _auroc_sums(kind: str, output: Tensor, target: Tensor) -> Sums:
    if target.min() == target.max():
        return [0.0, 0.0]  # one class only: no curve
    from torchmetrics.functional.classification import binary_auroc

    return [float(binary_auroc(output[:, 0].sigmoid(), target.long())), 1.0]


def _squared_sums(kind: str, output: Tensor, target: Tensor) -> Sums:
    errors = (output.double() - target.double()).square().mean(dim=1)
    return [float(errors.sum()), float(len(errors))]


def _absolute_sums(kind: str, output: Tensor, target: Tensor) -> Sums:
    errors = (output.double() - target.double()).abs().mean(dim=1)
    return [float(errors.sum()), float(len(errors))]


def _r2_sums(kind: str, output: Tensor, target: Tensor) -> Sums:
    truth = target.double()
    errors = (output.double() - truth).square().sum(0)
    return [float(len(truth)), *torch.cat([truth.sum(0), truth.square().sum(0), errors]).tolist()]


def _ratio(sums: Sequence[float]) -> float:
    return sums[0] / sums[1] if sums[1] else math.nan


def _root_ratio(sums: Sequence[float]) -> float:
    return math.sqrt(_ratio(sums)) if sums[1] else math.nan


def _f1(sums: Sequence[float]) -> float:
    """Macro F1 over the classes that occur among truths or decisions."""
    count = len(sums) // 3
    scores = [
        2 * hits / (2 * hits + false_alarms + misses)
        for hits, false_alarms, misses in zip(
            sums[:count], sums[count : 2 * count], sums[2 * count :], strict=True
        )
        if hits + false_alarms + misses > 0
    ]
    return sum(scores) / len(scores) if scores else math.nan


def _r2(sums: Sequence[float]) -> float:
    """Mean over outputs of ``1 - SSE / (sum y^2 - (sum y)^2 / n)``."""
    rows, width = sums[0], (len(sums) - 1) // 3
    scores = []
    for k in range(width):
        total, squares, errors = sums[1 + k], sums[1 + width + k], sums[1 + 2 * width + k]
        spread = squares - total * total / rows if rows else 0.0
        scores.append(1 - errors / spread if spread > 0 else math.nan)
    return sum(scores) / width if width else math.nan


@dataclass(frozen=True)
class MetricRule:
    """How one metric is summed on a client and read on the server.

    Attributes:
        sums: (kind, output [N, outputs], target) -> additive numbers of one client.
        figure: the added-up numbers -> the figure; NaN where nothing was counted.
        length: number of outputs of the head -> how many numbers `sums` yields.
        higher_is_better: direction, for comparisons.
    """

    sums: Callable[[str, Tensor, Tensor], Sums]
    figure: Callable[[Sequence[float]], float]
    length: Callable[[int], int]
    higher_is_better: bool


def _pair(outputs: int) -> int:
    return 2


METRICS: dict[str, MetricRule] = {
    "accuracy": MetricRule(_accuracy_sums, _ratio, _pair, True),
    "f1": MetricRule(_f1_sums, _f1, lambda outputs: 3 * outputs, True),
    "auroc": MetricRule(_auroc_sums, _ratio, _pair, True),
    "mse": MetricRule(_squared_sums, _ratio, _pair, False),
    "rmse": MetricRule(_squared_sums, _root_ratio, _pair, False),
    "mae": MetricRule(_absolute_sums, _ratio, _pair, False),
    "r2": MetricRule(_r2_sums, _r2, lambda outputs: 1 + 3 * outputs, True),
}


def metric_sums(
    metric: str, kind: str, output: Tensor, target: Tensor, scale: TargetScale | None
) -> Sums:
    """Sum one metric over labelled rows, in the target's own unit.

    Args:
        metric: a key of `METRICS`.
        kind: the task's kind.
        output: [N, outputs] of the head; N >= 1.
        target: as in `common.dataset.Rows.targets`.
        scale: undone on both where the target is standardised.
    """
    if scale is not None:
        output = scale.mean.to(output) + scale.deviation.to(output) * output
        target = scale.mean.to(target) + scale.deviation.to(target) * target
    return METRICS[metric].sums(kind, output, target)


def add_sums(left: Sequence[float], right: Sequence[float]) -> Sums:
    """Add two clients' sums.

    >>> add_sums([1, 2], [3, 4])
    [4, 6]
    """
    return [a + b for a, b in zip(left, right, strict=True)]
