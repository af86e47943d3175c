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


def _accuracy_rows(kind: str, output: Tensor, target: Tensor) -> Tensor:
    decided = predicted_classes(kind, output)
    decided = decided.unsqueeze(1) if decided.ndim == 1 else decided
    right = decided == target.reshape(decided.shape).to(decided.dtype)
    counts = torch.full((len(right),), right.shape[1], device=right.device)
    return torch.stack([right.sum(1), counts], 1)


def _f1_rows(kind: str, output: Tensor, target: Tensor) -> Tensor:
    decided = predicted_classes(kind, output)
    if kind == "multiclass":
        classes = torch.arange(output.shape[1], device=output.device)
        decided, truth = decided[:, None] == classes, target[:, None] == classes
    else:
        truth = target.reshape(decided.shape).bool()
    return torch.cat([decided & truth, decided & ~truth, truth & ~decided], 1)  # [N, 3 C]


def _squared_rows(kind: str, output: Tensor, target: Tensor) -> Tensor:
    errors = (output.double() - target.double()).square().mean(dim=1)
    return torch.stack([errors, torch.ones_like(errors)], 1)


def _absolute_rows(kind: str, output: Tensor, target: Tensor) -> Tensor:
    errors = (output.double() - target.double()).abs().mean(dim=1)
    return torch.stack([errors, torch.ones_like(errors)], 1)


def _r2_rows(kind: str, output: Tensor, target: Tensor) -> Tensor:
    truth = target.double()
    errors = (output.double() - truth).square()
    return torch.cat([torch.ones_like(truth[:, :1]), truth, truth.square(), errors], 1)


def _auroc(output: Tensor, target: Tensor) -> Sums:
    """Compute one client's area under the curve, and that it counts once."""
    if target.min() == target.max():
        return [0.0, 0.0]  # one class only: no curve
    from torchmetrics.functional.classification import binary_auroc

    return [float(binary_auroc(output[:, 0].sigmoid(), target.long())), 1.0]


def _ratio(sums: Sequence[float]) -> float:
    return sums[0] / sums[1] if sums[1] else math.nan


def _root_ratio(sums: Sequence[float]) -> float:
    return math.sqrt(max(_ratio(sums), 0.0)) if sums[1] else math.nan  # noise may go below 0


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
        rows: (kind, output [N, outputs], target) -> [N, m], what each row adds to a client's
            numbers; None for `auroc`, which is no sum over rows.
        figure: the added-up numbers -> the figure; NaN where nothing was counted.
        length: number of outputs of the head -> m.
        higher_is_better: direction, for comparisons.
    """

    rows: Callable[[str, Tensor, Tensor], Tensor] | None
    figure: Callable[[Sequence[float]], float]
    length: Callable[[int], int]
    higher_is_better: bool


def _pair(outputs: int) -> int:
    return 2


METRICS: dict[str, MetricRule] = {
    "accuracy": MetricRule(_accuracy_rows, _ratio, _pair, True),
    "f1": MetricRule(_f1_rows, _f1, lambda outputs: 3 * outputs, True),
    "auroc": MetricRule(None, _ratio, _pair, True),
    "mse": MetricRule(_squared_rows, _ratio, _pair, False),
    "rmse": MetricRule(_squared_rows, _root_ratio, _pair, False),
    "mae": MetricRule(_absolute_rows, _ratio, _pair, False),
    "r2": MetricRule(_r2_rows, _r2, lambda outputs: 1 + 3 * outputs, True),
}


def metric_sums(
    metric: str, kind: str, output: Tensor, target: Tensor, scale: TargetScale | None
) -> Sums:
    """Sum one metric over a client's labelled rows, in the target's own unit.

    Args:
        metric: a key of `METRICS`.
        kind: the task's kind.
        output: [N, outputs] of the head; N >= 1.
        target: as in `common.dataset.Rows.targets`.
        scale: undone on both where the target is standardised.
    """
    if scale is not None:
        output, target = scale.undo(output), scale.undo(target)
    rows = METRICS[metric].rows
    if rows is None:
        return _auroc(output, target)
    sums: Sums = rows(kind, output, target).double().sum(0).tolist()
    return sums


def grouped_metric_sums(
    metric: str, kind: str, output: Tensor, target: Tensor, owners: Tensor, clients: int
) -> Tensor:
    """Sum one metric over the labelled rows of many clients, client by client: float64 [K, m].

    Args:
        metric: a key of `METRICS`.
        kind: the task's kind.
        output: [N, outputs], in the target's own unit.
        target: as in `common.dataset.Rows.targets`, in its own unit.
        owners: int64 [N], the client that each row belongs to.
        clients: K; one without rows gets zeros.
    """
    rule = METRICS[metric]
    if rule.rows is not None:
        rows = rule.rows(kind, output, target).double()
        return rows.new_zeros(clients, rows.shape[1]).index_add_(0, owners, rows)
    sums = torch.zeros(clients, 2, dtype=torch.float64, device=output.device)
    for owner in sorted(set(owners.tolist())):
        own = owners == owner
        sums[owner] = torch.tensor(_auroc(output[own], target[own]), dtype=torch.float64)
    return sums


def add_sums(left: Sequence[float], right: Sequence[float]) -> Sums:
    """Add two clients' sums.

    >>> add_sums([1, 2], [3, 4])
    [4, 6]
    """
    return [a + b for a, b in zip(left, right, strict=True)]
