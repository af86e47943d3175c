"""Local training of many clients at once, one row of parameters each.

Clients are ordered by size, largest first, so that those which still have a batch are always the
first rows of every matrix: a step works on a slice, and nothing is computed for clients that are
done. Results equal those of clients trained one after another, to the rounding of sums.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import Index, Patterns, epoch_orders
from client.cohort_evaluation import EvaluationStore, evaluate_cohort
from client.cohort_steps import Scales, Steps, Stretch, WeighedSteps
from client.compiling import Compiled
from client.flat import TRUNK, FlatLayout
from client.optimisers import Optimiser, merge_parts
from client.phases import Moves, Phase, divide_parts
from client.private_steps import PrivateSteps
from client.rates import StepSchedule
from client.row_privacy import NO_DRAWS, Draws, RowPrivacy, is_private
from client.row_store import RowStore
from client.stacked_layers import NO_COUNTS
from client.stacked_model import StackedModel
from common.experiment import Experiment
from common.schedules.rates import settings_of_round
from common.sections.training import Training
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
        patterns: each one's, of `client.batches.row_patterns`.
    """

    store: RowStore
    members: Index
    keys: UInt64Array
    patterns: Sequence[Patterns]


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
        self.model, self.experiment, self.settings = model, experiment, experiment.training
        self.parts = divide_parts(layout, experiment)
        self._compiled = Compiled(model.step, "the step") if self.settings.compile else None
        self._schedule = StepSchedule(self.settings)
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
        draws: Draws = NO_DRAWS,
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
            draws: each client's for row samples and noise, under example-level privacy.

        Returns:
            Training loss per task and client, for the tasks that any of the store's clients holds.
        """
        store, phase = cohort.store, phase or Phase(self.settings.epochs)
        for dropout in self.model.dropouts:
            dropout.generators = list(generators)
        if draws and is_private(self.experiment, phase.moves):
            losses, counts = self._train_privately(
                cohort, values, weights, round_number, phase, draws
            )
        else:
            losses, counts = self._train(cohort, values, weights, round_number, balance, phase)
        self._rest()
        sums = np.stack([losses.cpu().numpy(), counts], 2)
        return {task: sums[:, place] for place, task in enumerate(store.tasks)}

    def _train(
        self,
        cohort: Cohort,
        values: Tensor,
        weights: Mapping[str, float],
        round_number: int,
        balance: Balance | None,
        phase: Phase,
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """Train epoch after epoch; returns the summed losses and the rows in them, [K, T] both."""
        store = cohort.store
        size, step = self.settings.batch_size, self._compiled or self.model.step
        steps_of = -(-store.counts[cohort.members] // size) * phase.epochs
        optimiser = self._make_optimiser(values, round_number, phase, steps_of)
        if balance is not None:  # it has the round's weights, too
            weights = dict.fromkeys(store.tasks, 1.0)
        scales = self._get_scales(store, weights, values.device, phase.moves)
        parts = self.parts[phase.moves]
        arguments = (self.model, step, parts, store, values, size, scales, optimiser)
        steps = Steps(*arguments) if balance is None else WeighedSteps(*arguments, balance=balance)
        width = self.model.tasks.width
        # Where rows are not visited once each, nor are their labels.
        recounted = self.settings.balance == "classes" and store.labelled is not None
        labels = store.label_counts[cohort.members].astype(np.float64)
        counts, losses, stopping = np.zeros_like(labels), steps.sums, phase.stopping
        for epoch in range(phase.first, phase.first + phase.epochs):
            if balance is not None:
                balance.start_epoch(round_number, epoch)
            if recounted:
                labels[:] = 0
            for stretch in stretches(cohort, self.settings, round_number, epoch, width):
                steps.take(stretch)
                if recounted:
                    labels[: len(stretch.left)] += count_labels(store, stretch)
            if stopping is None:
                counts += labels
                continue
            active = stopping.active if len(stopping.active) else np.ones(len(values), np.bool_)
            counts[active] += labels[active]
            losses = torch.where(_column(active, losses), steps.sums, losses)
            if not stopping.goes_on(values):
                break
            steps.rebind()
        if stopping is not None:
            stopping.finish(values)
        return losses, counts

    def losses(self, store: EvaluationStore, members: Index, values: Tensor) -> dict[str, Tensor]:
        """Sum clients' losses on held out rows in the midst of training: task -> [K, 2]."""
        with self.resting():
            found = evaluate_cohort(
                self.model, self.experiment, store, members, values, losses_only=True
            )
        return {task: sums["loss"] for task, sums in found.items()}

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Let layers act as in evaluation for a while, in the midst of training."""
        generators = [dropout.generators for dropout in self.model.dropouts]
        counts = [layer.counts for layer in self.model.counting]
        self._rest()
        yield
        for dropout, own in zip(self.model.dropouts, generators, strict=True):
            dropout.generators = own
        for layer, seen in zip(self.model.counting, counts, strict=True):
            layer.counts = seen

    def _rest(self) -> None:
        """Let layers act as in evaluation."""
        for dropout in self.model.dropouts:
            dropout.generators = []
        for layer in self.model.counting:
            layer.counts = NO_COUNTS

    def _train_privately(
        self,
        cohort: Cohort,
        values: Tensor,
        weights: Mapping[str, float],
        round_number: int,
        phase: Phase,
        draws: Draws,
    ) -> tuple[Tensor, NDArray[np.float64]]:
        """Train by DP-SGD; returns the summed losses and the rows in them, [K, T] both."""
        store = cohort.store
        privacy = RowPrivacy.of(self.experiment, store.counts[cohort.members], draws, values.device)
        gradients = torch.zeros_like(values)
        steps_of = privacy.steps * phase.epochs
        optimiser = self._make_optimiser(values, round_number, phase, steps_of, gradients)
        scales = self._get_scales(store, weights, values.device, phase.moves)
        size, parts = self.settings.batch_size, self.parts[phase.moves]
        arguments = (self.model, self.model.step, parts, store, values, size, scales, optimiser)
        steps = PrivateSteps(
            *arguments, gradients=gradients, members=cohort.members, privacy=privacy
        )
        for _ in range(phase.epochs):
            steps.take_epoch()
        return steps.sums, steps.counts

    def _make_optimiser(
        self,
        values: Tensor,
        round_number: int,
        phase: Phase,
        steps: Index,
        gradients: Tensor | None = None,
    ) -> Optimiser:
        """Make a phase's optimiser for clients that take so many steps in it, int64 [K]."""
        settings = settings_of_round(self.experiment, round_number)
        rates = self._schedule.rates(steps)
        return phase.optimiser(values, settings, self.parts, gradients, rates)

    def _get_scales(
        self, store: RowStore, weights: Mapping[str, float], device: torch.device, moves: Moves
    ) -> Scales:
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


def _column(active: NDArray[np.bool_], like: Tensor) -> Tensor:
    return torch.from_numpy(active[:, None].copy()).to(like.device)


def count_labels(store: RowStore, stretch: Stretch) -> NDArray[np.float64]:
    """Count the labels of a stretch's rows, [K', T]."""
    if store.labelled is None:
        raise RuntimeError("every row has every label: there is nothing to count")
    real = torch.from_numpy(np.arange(stretch.rows.shape[1]) < stretch.left[:, None])
    labelled = store.labelled[stretch.rows]
    seen = labelled * real.to(labelled).unsqueeze(2)
    counts: NDArray[np.float64] = seen.double().sum(1).cpu().numpy()
    return counts


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
