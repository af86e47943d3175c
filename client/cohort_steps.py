"""The steps of a cohort, a stretch of them at a time.

A step gathers its inputs and does the model's arithmetic; what can be done for many steps at once,
such as gathering targets and summing losses, is done for a stretch of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from client.batches import Index
from client.flat import TRUNK
from client.optimisers import Optimiser, Part
from client.row_store import RowStore
from client.stacked_layers import Sink
from client.stacked_losses import count_taught, pad_rows, share_out
from client.stacked_model import StackedModel
from common.weighting.balance import Balance


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of an epoch.

    Attributes:
        rows: int64 [K', M], numbers of rows in the store; K' clients have rows left at its start.
        left: int64 [K'], rows that each has left at its start; beyond them `rows` is padding.
    """

    rows: Tensor
    left: Index


@dataclass(frozen=True)
class Scales:
    """What depends on a round's weights and on who is taught what, but not on the rows.

    Attributes:
        spread: [T, O] of `TaskColumns.spread`.
        owners: [O] of `TaskColumns.owners`, whose loss each column's terms belong to.
        factors: [O] of `TaskColumns.owners`, the terms' factors; None where all are 1.
        everything: the parts that step where every row teaches all tasks that have a label.
        even: B -> [O], what a row of a batch of B counts where all count alike.
    """

    spread: Tensor
    owners: Tensor
    factors: Tensor | None
    everything: list[Part]
    even: dict[int, Tensor] = field(default_factory=dict)

    def share(self, rows: int) -> Tensor:
        """Get what each of a batch's rows counts where all count alike, [O]."""
        if rows not in self.even:
            self.even[rows] = self.spread.sum(0) / rows
        return self.even[rows]


@dataclass(frozen=True)
class Batch:
    """One batch of each of K' clients.

    Attributes:
        inputs: [K', B, D].
        targets: [K', B, O] of `TaskColumns.encode`.
        share: what each row counts, as in `TaskColumns.slope`.
        counted: float32 [K', B, T], 1 where a row counts for a task; None where all count.
    """

    inputs: Tensor
    targets: Tensor
    share: Tensor
    counted: Tensor | None


class Steps:
    """The steps of one cohort in one round.

    Attributes:
        sums: float32 [K, T], loss summed so far.
    """

    def __init__(
        self,
        model: StackedModel,
        step: Callable[[Tensor, Tensor, Tensor, Tensor, Sink], None],
        parts: Mapping[str, Part],
        store: RowStore,
        values: Tensor,
        size: int,
        scales: Scales,
        optimiser: Optimiser,
    ) -> None:
        self.model, self.step = model, step
        self.parts, self.store, self.values = parts, store, values
        self.size, self.scales, self.optimiser = size, scales, optimiser
        self.sums = values.new_zeros(len(values), len(store.tasks))
        self._bound = 0

    def take(self, stretch: Stretch) -> None:
        """Take the steps of a stretch."""
        store, left, size = self.store, stretch.left, self.size
        targets = store.targets[stretch.rows]  # [K', M, O]
        counted = self._counted(stretch)
        # Where there is padding, not every place is written.
        outputs = torch.empty_like(targets) if counted is None else torch.zeros_like(targets)
        shares: Sequence[Tensor] = ()
        taught: Tensor | None = None
        if counted is not None:
            padded = pad_rows(counted, size)
            taught = count_taught(padded, size)
            shares = torch.split(share_out(padded, taught, self.scales.spread), size, 1)
        whole, rest = divmod(stretch.rows.shape[1], size)
        widths = [size] * whole + [rest] * (rest > 0)
        numbers = [
            rows[: int((left > number * size).sum())] if left[-1] <= number * size else rows
            for number, rows in enumerate(stretch.rows.split_with_sizes(widths, 1))
        ]  # of the rows in each batch, of the clients that are not done
        with store.open_inputs(numbers) as inputs:
            batches = zip(
                inputs,
                targets.split_with_sizes(widths, 1),
                outputs.split_with_sizes(widths, 1),
                strict=True,
            )
            for number, (values, truth, result) in enumerate(batches):
                clients, width = values.shape[:2]
                if clients < len(truth):
                    truth, result = truth[:clients], result[:clients]
                share = shares[number][:clients, :width] if shares else self.scales.share(width)
                here = slice(number * size, number * size + width)
                seen = None if counted is None else counted[:clients, here]
                batch = Batch(values, truth, share, seen)
                self._bind(clients)
                for layer in self.model.counting:
                    layer.counts = np.minimum(left[:clients] - number * size, width)
                self._step(batch, result)
                if self.optimiser.steps_late:
                    self.optimiser.step(clients, self._parts(taught, number, clients))
                self._learn(batch)
        losses = self._sum_losses(outputs, targets, counted)
        self.sums[: len(losses)] += losses

    def _step(self, batch: "Batch", kept: Tensor) -> None:
        """Hand a batch's gradients to the optimiser, and its outputs to `kept`."""
        self.step(batch.inputs, batch.targets, batch.share, kept, self.optimiser)

    def _learn(self, batch: "Batch") -> None:
        """Learn from a batch after its step; fixed weights learn nothing."""

    def _counted(self, stretch: Stretch) -> Tensor | None:
        """Mark what counts, float32 [K', M, T]; None where every row counts for every task."""
        labelled, rows = self.store.labelled, stretch.rows
        counted = None if labelled is None else labelled[rows]
        if stretch.left[-1] >= rows.shape[1]:
            return counted
        real = torch.from_numpy(np.arange(rows.shape[1]) < stretch.left[:, None])
        real = real.to(self.values).unsqueeze(2)
        if counted is None:
            return real.expand(-1, -1, len(self.store.tasks))
        return counted * real

    def rebind(self) -> None:
        """Bind the model anew at the next step: it was lent to others."""
        self._bound = 0

    def _bind(self, clients: int) -> None:
        if clients != self._bound:
            self._bound = clients
            self.model.bind(self.values[:clients])

    def _parts(self, taught: Tensor | None, number: int, clients: int) -> list[Part]:
        """Name what steps: the trunk, and for each task the heads of the clients that it teaches.

        Args:
            taught: [K', S, T], rows of each batch that teach each task; None where all do.
            number: of the batch.
            clients: those that have a batch left.
        """
        if self.store.labelled is None or taught is None:
            return self.scales.everything
        active = taught[:clients, number] > 0
        heads = [
            replace(self.parts[task], active=active[:, place])
            for place, task in enumerate(self.store.tasks)
            if task in self.store.taught
        ]
        return [self.parts[TRUNK], *heads]

    def _sum_losses(self, outputs: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
        """Sum the losses of rows [K', M] task by task, [K', T]; `outputs` is overwritten."""
        # Added up task by task: a product with zeros would let one task's infinity spoil them all.
        terms = self.model.tasks.terms(outputs, targets)
        if self.scales.factors is not None:
            terms.mul_(self.scales.factors)
        tasks = len(self.store.tasks)
        if counted is None:
            columns = terms.sum(1)
            losses = columns.new_zeros(len(terms), tasks + 1)
            return losses.index_add_(1, self.scales.owners, columns)[:, :tasks]
        rows = terms.new_zeros(*terms.shape[:2], tasks + 1)
        rows = rows.index_add_(2, self.scales.owners, terms)[:, :, :tasks]
        return (rows * counted).sum(1)


class WeighedSteps(Steps):
    """Steps whose losses are weighed anew each time.

    A loss weighting's gradient is that of the task losses times its weights, so a step's shares are
    multiplied by them, column by column.
    """

    def __init__(self, *arguments: Any, balance: Balance) -> None:
        super().__init__(*arguments)
        self.balance = balance
        every = {task: place for place, task in enumerate(balance.rules.tasks)}
        self._places = torch.tensor([every[task] for task in self.store.tasks])
        self._places = self._places.to(self.values.device)
        taught = [task in self.store.taught for task in self.store.tasks]
        self._taught = torch.tensor(taught, device=self.values.device)

    def _step(self, batch: Batch, kept: Tensor) -> None:
        outputs = self.model.outputs(batch.inputs)
        kept.copy_(outputs)
        losses, taught = self._mean_losses(outputs.clone(), batch)
        weights = self.balance.weigh(losses, taught)[:, self._places]
        columns = pad(weights, (0, 1))[:, self.scales.owners].unsqueeze(1)  # [K', 1, O]
        self.model.backward(outputs, batch.targets, batch.share * columns, self.optimiser)

    def _learn(self, batch: Batch) -> None:
        after = None
        if self.balance.rules.weighting.needs_after:
            after, _ = self._mean_losses(self.model.outputs(batch.inputs), batch)
        self.balance.learn(after)

    def _mean_losses(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Average the losses of a batch's rows over all tasks of the experiment, [K', T] both."""
        sums = self._sum_losses(outputs, batch.targets, batch.counted)
        if batch.counted is None:
            counts = self._taught * float(outputs.shape[1])
            counts = counts.expand_as(sums)
        else:
            counts = batch.counted.sum(1) * self._taught
        losses = sums.new_zeros(len(sums), len(self.balance.rules.tasks))
        taught = torch.zeros_like(losses, dtype=torch.bool)
        losses[:, self._places] = sums / counts.clamp(min=1)
        taught[:, self._places] = counts > 0
        return losses, taught
