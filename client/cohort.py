"""Local training of many clients at once, one row of parameters each.

Clients are ordered by size, largest first, so that those which still have a batch are always the
first rows of every matrix: a step works on a slice, and nothing is computed for clients that are
done. Results equal those of clients trained one after another, to the rounding of sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.batches import Index, epoch_orders
from client.flat import TRUNK, FlatLayout
from client.optimisers import Part, make_optimiser
from client.row_store import RowStore
from client.stacked_losses import share_out
from client.stacked_model import StackedModel
from common.experiment import Training
from common.seeding import UInt64Array

LossSums = dict[str, Tensor]  # task -> float32 [K, 2]: summed loss, labelled rows


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
    patterns: Sequence[Index]


@dataclass(frozen=True)
class Batch:
    """One step's rows: the first `clients` clients, `width` places each, some maybe padding.

    Attributes:
        clients: K', how many clients have rows left.
        rows: int64 [K', B], numbers of rows in the store.
        real: bool [K', B], False for padding; None where there is none.
        counts: real rows of each client.
    """

    clients: int
    rows: Tensor
    real: Tensor | None
    counts: list[int]


def largest_first(counts: Sequence[int]) -> Index:
    """Order clients by size; equal ones keep their order.

    >>> largest_first([3, 9, 3]).tolist()
    [1, 0, 2]
    """
    return np.argsort(-np.asarray(counts), kind="stable").astype(np.int64)


def train_cohort(
    model: StackedModel,
    layout: FlatLayout,
    cohort: Cohort,
    values: Tensor,
    settings: Training,
    weights: Mapping[str, float],
    round_number: int,
    generators: Sequence[torch.Generator] = (),
) -> LossSums:
    """Train every client's row of parameters for the round's local epochs.

    Args:
        model: forward and backward.
        layout: columns of trunk and heads.
        cohort: K clients, largest first.
        values: [K, P], moved in place.
        settings: epochs, batch size, optimiser.
        weights: task name -> w_t of the round.
        round_number: names the random streams.
        generators: each client's for dropout; empty where the model has none.

    Returns:
        Training loss per task and client.
    """
    store = cohort.store
    optimiser = make_optimiser(values, settings)
    sums = {task: values.new_zeros(len(values)) for task in store.targets}
    bound = 0
    for dropout in model.dropouts:
        dropout.generators = list(generators)
    for epoch in range(settings.epochs):
        for batch in batches(cohort, settings, round_number, epoch):
            inputs = store.inputs[batch.rows]
            targets = {task: values[batch.rows] for task, values in store.targets.items()}
            labelled = {t: _labelled(store, t, batch) for t in targets}
            shares = {t: share_out(labelled[t], weights[t], batch.rows) for t in targets}
            for dropout in model.dropouts:
                dropout.counts = batch.counts
            if batch.clients != bound:
                bound = batch.clients
                model.bind(values if bound == len(values) else values[:bound])
            losses = model.step(inputs, targets, shares, optimiser)
            for task, rows in losses.items():
                mask = labelled[task]
                total = sums[task] if bound == len(values) else sums[task][:bound]
                total += (rows if mask is None else rows * mask).sum(1)
            if optimiser.steps_late:
                optimiser.step(bound, _parts(layout, store, labelled))
    for dropout in model.dropouts:
        dropout.generators = []
    members = torch.from_numpy(cohort.members).to(values.device)
    return {
        task: torch.stack([total, store.label_counts[task][members] * settings.epochs], 1)
        for task, total in sums.items()
    }


def batches(cohort: Cohort, settings: Training, round_number: int, epoch: int) -> list[Batch]:
    """Divide one epoch into steps."""
    store, size = cohort.store, settings.batch_size
    counts = np.asarray([store.counts[m] for m in cohort.members])
    starts = np.asarray([store.starts[m] for m in cohort.members])
    orders = epoch_orders(cohort.keys, cohort.patterns, settings.balance, round_number, epoch)
    last = starts + counts - 1
    # Padding repeats a row of the client's own; it counts for nothing.
    rows = torch.from_numpy(np.minimum(orders + starts[:, None], last[:, None]))
    rows = rows.to(store.inputs.device)
    steps = []
    for begin in range(0, int(counts[0]), size):
        clients = int((counts > begin).sum())
        own = np.minimum(counts[:clients] - begin, size)
        width = int(own[0])
        real = None
        if own[-1] < width:
            real = torch.from_numpy(np.arange(width) < own[:, None]).to(rows.device)
        steps.append(Batch(clients, rows[:clients, begin : begin + width], real, own.tolist()))
    return steps


def _labelled(store: RowStore, task: str, batch: Batch) -> Tensor | None:
    """Mark the rows that teach a task, bool [K', B]; None where all do."""
    if task in store.complete:
        return batch.real
    labelled = store.labelled[task][batch.rows]
    return labelled if batch.real is None else labelled & batch.real


def _parts(
    layout: FlatLayout, store: RowStore, labelled: Mapping[str, Tensor | None]
) -> list[Part]:
    """Name what steps: the trunk, and for each task the heads of the clients that it teaches."""
    parts = [Part(TRUNK, layout.segments[TRUNK])]
    for task, mask in labelled.items():
        active = None if mask is None or task in store.complete else mask.any(1)
        parts.append(Part(task, layout.segments[task], active))
    return parts
