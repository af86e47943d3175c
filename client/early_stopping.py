"""A client stops its local training when its own validation loss no longer falls.

After ``training.patience`` epochs without a lower loss a client stops, and returns to the
parameters as they were after its best epoch (Prechelt, "Early stopping - but when?", 1998, the
criterion UP). Clients side by side stop each by itself: the others go on, and what is computed for
one that has stopped counts for nothing.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.metrics import Sums

Losses = NDArray[np.float64]  # [K, 2]: the loss, NaN where there is none; and labelled rows


class Stopping:
    """Follows K clients through one phase of training, epoch by epoch.

    Args:
        judge: makes of parameters [K, P] the clients' `Losses` on their own validation rows.
        patience: epochs without a lower loss after which a client stops.

    Attributes:
        done: int64 [K], epochs that each has done; empty before the first.
        active: bool [K], who goes on.
    """

    def __init__(self, judge: Callable[[Tensor], Losses], patience: int) -> None:
        self.judge, self.patience = judge, patience
        self.done = self._kept = np.zeros(0, np.int64)
        self.active = np.zeros(0, np.bool_)
        self._lowest = np.zeros(0)
        self._best: Tensor | None = None

    def goes_on(self, values: Tensor) -> bool:
        """Judge parameters, [K, P], after an epoch; returns whether anybody goes on.

        A client without a label among its validation rows goes on to the end. The first epoch
        always counts, so that what diverged at once has something to return to.
        """
        if self._best is None:
            clients = len(values)
            self._best = values.clone()
            self.done, self._kept = np.zeros((2, clients), np.int64)
            self.active = np.ones(clients, np.bool_)
            self._lowest = np.full(clients, np.inf)
        losses, rows = self.judge(values).T
        is_judged = rows > 0
        self.done += self.active
        # NaN, of what diverged, is no lower.
        is_lower = ~is_judged | (losses < self._lowest) | (self._kept == 0)
        better = self.active & is_lower
        self._kept[better] = self.done[better]
        self._lowest[better] = np.where(np.isnan(losses[better]), np.inf, losses[better])
        chosen = torch.from_numpy(better).to(values.device)
        self._best[chosen] = values[chosen]
        self.active &= ~is_judged | (self.done - self._kept < self.patience)
        return bool(self.active.any())

    def finish(self, values: Tensor) -> None:
        """Return to the best epochs: write them into the parameters, [K, P]."""
        if self._best is not None:
            values.copy_(self._best)


def weigh_losses(sums: Mapping[str, Sums], weights: Mapping[str, float]) -> Losses:
    """Compute one client's ``sum_t w_t L_t`` over its validation rows, [1, 2].

    Args:
        sums: task -> summed loss and labelled rows, of tasks that have any.
        weights: task -> w_t.
    """
    loss = sum(weights[task] * total / rows for task, (total, rows) in sums.items())
    return np.array([[loss if sums else np.nan, sum(rows for _, rows in sums.values())]])


def weigh_all_losses(
    sums: Mapping[str, Tensor], weights: Mapping[str, float], clients: int
) -> Losses:
    """Compute the losses of K clients, [K, 2]; see `weigh_losses`.

    Args:
        sums: task -> [K, 2], summed loss and labelled rows; zeros where a client has none.
        weights: task -> w_t.
        clients: K.
    """
    losses: Losses = np.zeros((clients, 2))
    for task, own in sums.items():
        total, rows = own.double().cpu().numpy().T
        means = np.divide(total, rows, out=np.zeros(clients), where=rows > 0)
        losses += np.stack([weights[task] * means, rows], 1)
    return losses
