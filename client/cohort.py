"""Local training of many clients at once, one row of parameters each.

Clients are ordered by size, largest first, so that those which still have a batch are always the
first rows of every matrix: a step works on a slice, and nothing is computed for clients that are
done. Results equal those of clients trained one after another, to the rounding of sums.

A step gathers its inputs and does the model's arithmetic; what can be done for many steps at once,
such as gathering targets and summing losses, is done for a stretch of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from client.batches import Index, epoch_orders
from client.compiling import Compiled
from client.flat import TRUNK, FlatLayout
from client.optimisers import Optimiser, Part, merge_parts
from client.phases import Moves, Phase, divide_parts
from client.row_store import RowStore
from client.stacked_layers import NO_COUNTS, Sink
from client.stacked_losses import count_taught, pad_rows, share_out
from client.stacked_model import StackedModel
from common.experiment import Experiment, Training
from common.seeding import UInt64Array
from common.weighting.balance import Balance

LossSums = dict[str, NDArray[np.float64]]  # task -> [K, 2]: summed loss, labelled rows
STRETCH = 2**20  # outputs of a stretch of steps, in numbers: bounds its memory
KEPT_SCALES = 64  # sets of weights and tasks whose constants are kept


@dataclass(frozen=True)
class Cohort:
    """Clients that train together, largest first.

    Attributes:
        store: rows of these clients, and maybe of others.
        members: [K] int64, their places in the store.
        keys: [K] of `client.batches.shuffle_key`.
        patterns: each one's [n_k] of `client.batches.label_patterns`.
    """

    store: RowStore
    members: Index
    keys: UInt64Array
    patterns: Sequence[Index | None]


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of an epoch.

    Attributes:
        rows: int64 [K', M], numbers of rows in the store; K' clients have rows left at its start.
        left: int64 [K'], rows that each has left at its start; beyond them `rows` is padding.
    """

    rows: Tensor
    left: Index


def largest_first(counts: Sequence[int] | Index) -> Index:
    """Order clients by size; equal ones keep their order.

    >>> largest_first([3, 9, 3]).tolist()
    [1, 0, 2]
    """
    return np.argsort(-np.asarray(counts), kind="stable").astype(np.int64)


class CohortTrainer:
    """Trains cohorts on one stacked model, one cohort after another.

    Args:
        model: forward and backward.
        layout: columns of trunk and heads.
        experiment: epochs, batch size, optimiser, rates of regularisation.
    """

    def __init__(self, model: StackedModel, layout: FlatLayout, experiment: Experiment) -> None:
        self.model, self.settings = model, experiment.training
        self.parts = divide_parts(layout, experiment)
        self._compiled = Compiled(model.step, "the step") if self.settings.compile else None
        self._scales: dict[tuple[object, ...], Scales] = {}

    def train(
        self,
        cohort: Cohort,
        values: Tensor,
        weights: Mapping[str, float],
        round_number: int,
        generators: Sequence[torch.Generator] = (),
        balance: Balance | None = None,
        phase: Phase | None = None,
    ) -> LossSums:
        """Train every client's row of parameters for the round's local epochs.

        Args:
            cohort: K clients, largest first.
            values: [K, P], moved in place.
            weights: task name -> w_t of the round.
            round_number: names the random streams.
            generators: each client's for dropout; empty where the model has none.
            balance: weighs every step's losses, K rows; None where the round's weights are all.
            phase: what moves and for how long; None for all of it, for the experiment's epochs.

        Returns:
            Training loss per task and client, for the tasks that any of the store's clients holds.
        """
        store, phase = cohort.store, phase or Phase(self.settings.epochs)
        optimiser = phase.optimiser(values, self.settings, self.parts)
        if balance is not None:  # it has the round's weights, too
            weights = dict.fromkeys(store.tasks, 1.0)
        scales = self._get_scales(store, weights, values.device, phase.moves)
        size, step = self.settings.batch_size, self._compiled or self.model.step
        parts = self.parts[phase.moves]
        arguments = (self.model, step, parts, store, values, size, scales, optimiser)
        steps = Steps(*arguments) if balance is None else WeighedSteps(*arguments, balance=balance)
        width = self.model.tasks.width
        for dropout in self.model.dropouts:
            dropout.generators = list(generators)
        for epoch in range(phase.first, phase.first + phase.epochs):
            if balance is not None:
                balance.start_epoch(round_number, epoch)
            for stretch in stretches(cohort, self.settings, round_number, epoch, width):
                steps.take(stretch)
        for dropout in self.model.dropouts:
            dropout.generators = []
        for layer in self.model.counting:
            layer.counts = NO_COUNTS
        sums = np.zeros((len(values), len(store.tasks), 2))
        sums[:, :, 0] = steps.sums.cpu().numpy()
        sums[:, :, 1] = store.label_counts[cohort.members] * phase.epochs
        return {task: sums[:, place] for place, task in enumerate(store.tasks)}

    def _get_scales(
        self, store: RowStore, weights: Mapping[str, float], device: torch.device, moves: Moves
    ) -> "Scales":
        """Make the constant matrices of a round; for the weights of the last one, free."""
        key = (moves, store.tasks, store.taught, *(weights[task] for task in store.taught))
        if key not in self._scales:
            heard = {task: weights[task] if task in store.taught else 0.0 for task in store.tasks}
            spread = self.model.tasks.spread(heard).to(device)
            owners, scales = self.model.tasks.owners(store.tasks, store.taught)
            everything = merge_parts(self.parts[moves][name] for name in (TRUNK, *store.taught))
            if len(self._scales) >= KEPT_SCALES:
                self._scales.clear()
            factors = scales.to(device) if (scales != 1).any() else None
            self._scales[key] = Scales(spread, owners.to(device), factors, everything)
        return self._scales[key]


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


def stretches(
    cohort: Cohort, settings: Training, round_number: int, epoch: int, width: int
) -> Iterator[Stretch]:
    """Divide one epoch into stretches of whole batches; `width` is the number of outputs."""
    counts, starts = cohort.store.counts[cohort.members], cohort.store.starts[cohort.members]
    orders = epoch_orders(
        cohort.keys, counts, cohort.patterns, settings.balance, round_number, epoch
    )
    orders += starts[:, None]
    if counts[-1] < counts[0]:  # padding repeats a row of the client's own; it counts for nothing
        np.minimum(orders, (starts + counts - 1)[:, None], out=orders)
    rows = torch.from_numpy(orders).to(cohort.store.inputs.device)
    most = max(1, STRETCH // (settings.batch_size * width * len(counts))) * settings.batch_size
    if counts[0] <= most:
        yield Stretch(rows, counts)
        return
    for begin in range(0, int(counts[0]), most):
        left = counts - begin
        left = left[left > 0]
        yield Stretch(rows[: len(left), begin : begin + most], left)


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
        batches = zip(
            stretch.rows.split_with_sizes(widths, 1),
            targets.split_with_sizes(widths, 1),
            outputs.split_with_sizes(widths, 1),
            strict=True,
        )
        for number, (rows, truth, result) in enumerate(batches):
            clients, width = rows.shape
            if left[-1] <= number * size:  # some are done
                clients = int((left > number * size).sum())
                rows, truth, result = rows[:clients], truth[:clients], result[:clients]
            share = shares[number][:clients, :width] if shares else self.scales.share(width)
            here = slice(number * size, number * size + width)
            seen = None if counted is None else counted[:clients, here]
            batch = Batch(store.inputs[rows], truth, share, seen)
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
