"""Local training by autograd, one client at a time: for what has no stacked form."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from client.batch_gradient import BatchGradient, Compute
from client.batch_source import BatchSource
from client.batches import Index, epoch_order, row_patterns, shuffle_key
from client.flat import TRUNK, FlatParameters, still_places
from client.micro_batches import Batch
from client.optimisers import Optimiser
from client.phases import Parts, Phase
from client.precision import NotFiniteError
from client.private_autograd import PrivateAutograd, RowGradients
from client.rates import StepSchedule
from client.row_privacy import NO_DRAWS, Draws, RowPrivacy, is_private
from common.dataset import ClientData
from common.experiment import Experiment
from common.metrics import Sums
from common.model import MultiTaskModel
from common.schedules.rates import settings_of_round
from common.seeding import derive_key
from common.weighting.balance import Balance

logger = logging.getLogger("fedmtl.client")


@dataclass
class Taught:
    """Training losses of a client's round, task by task, as means over batches.

    Attributes:
        means: task -> mean loss of each batch that taught it.
        counts: task -> labelled rows of these batches.
    """

    means: dict[str, list[Tensor]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)
    skipped: int = 0

    def add(self, task: str, mean: Tensor, count: int) -> None:
        """Note one batch."""
        self.means.setdefault(task, []).append(mean.detach())
        self.counts.setdefault(task, []).append(count)

    def sums(self, task: str) -> Sums:
        """Sum over all rows: [loss sum, rows]."""
        if task not in self.means:
            return [0.0, 0.0]
        means, counts = torch.stack(self.means[task]).tolist(), self.counts[task]
        return [sum(m * n for m, n in zip(means, counts, strict=True)), float(sum(counts))]


class AutogradTrainer:
    """Trains the model whose parameters are `flat`.

    Args:
        experiment: settings of the run.
        model: one client's model.
        flat: its parameters.
        parts: what moves -> `TRUNK` and every task name -> the columns that step together.
        compute: the model, or what calls it.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: MultiTaskModel,
        flat: FlatParameters,
        parts: Parts,
        compute: Compute,
    ) -> None:
        self.experiment, self.model, self.flat, self.parts = experiment, model, flat, parts
        self._gradient = BatchGradient(experiment, model, flat, compute)
        self._row_gradients: RowGradients | None = None
        self._may_skip = experiment.training.precision == "float16"
        # What a forward pass moves: running statistics.
        self._running = [flat.values[place] for place in still_places(flat.layout)]
        self._schedule = StepSchedule(experiment.training)

    def train(
        self,
        data: ClientData,
        weights: Mapping[str, float],
        balance: Balance | None,
        round_number: int,
        generator: torch.Generator | None,
        phase: Phase,
        draws: Draws = NO_DRAWS,
    ) -> dict[str, Sums]:
        """Train for a phase's epochs.

        Args:
            data: the client's rows, on any device.
            weights: task name -> w_t of the round.
            balance: weighs every step's losses; None where the round's weights are all.
            round_number: names the random streams.
            generator: for dropout.
            phase: what moves and for how long.
            draws: the client's for row samples and noise, under example-level privacy.

        Returns:
            Task -> summed loss and the labelled rows it was summed over.
        """
        settings, seed = self.experiment.training, self.experiment.seed
        key, count = shuffle_key(seed, data.name), len(data.train)
        patterns = row_patterns(data.train, self.experiment)
        if draws and is_private(self.experiment, phase.moves):
            return self._train_privately(data, weights, round_number, generator, phase, draws)
        parts = self.parts[phase.moves]
        batches = np.array([-(-count // settings.batch_size)], np.int64)
        optimiser = self._make_optimiser(round_number, phase, batches)
        taught = Taught()
        source = BatchSource(data.train, self.flat.values.device, resident=data.resident)
        self.model.train()
        self.model.give_generator(generator)
        self._gradient.backward.begin()
        # Some ways to balance gradients draw from PyTorch's global state.
        later = (phase.first,) if phase.first else ()
        unseeded = balance is not None and balance.rules.gradients is not None
        with torch.random.fork_rng(devices=[], enabled=unseeded):
            if unseeded:
                torch.manual_seed(derive_key(seed, "gradients", data.name, round_number, *later))
            for epoch in range(phase.first, phase.first + phase.epochs):
                if balance is not None:
                    balance.start_epoch(round_number, epoch)
                order = epoch_order(count, patterns, settings.balance, key, round_number, epoch)
                with source.batches(torch.from_numpy(order), settings.batch_size) as found:
                    for rows in found:
                        batch = Batch.of(rows, settings.micro_batch)
                        if self._find_gradient(batch, weights, balance, taught):
                            optimiser.step(1, [parts[name] for name in (TRUNK, *batch.counts)])
                            self._learn(batch, balance)
                if phase.stopping and not phase.stopping.goes_on(self.flat.values.unsqueeze(0)):
                    break
            if phase.stopping:
                phase.stopping.finish(self.flat.values.unsqueeze(0))
        if taught.skipped:
            logger.warning(
                "%s: %d steps left out in round %d: their gradients are not finite in float16; "
                "lower training.lr, or set training.precision to 'bfloat16'",
                data.name,
                taught.skipped,
                round_number,
            )
        return {task: taught.sums(task) for task in data.tasks}

    def _find_gradient(
        self,
        batch: Batch,
        weights: Mapping[str, float],
        balance: Balance | None,
        taught: Taught,
    ) -> bool:
        """Leave a batch's gradient in the flat vector, and note its losses.

        Returns:
            Whether there is one to step along; else everything is as before the batch.
        """
        moved = [*self._running, *(balance.state.values() if balance else ())]
        before = [(place, place.clone()) for place in moved] if self._may_skip else []
        try:
            losses = self._gradient.find(batch, weights, balance)
        except NotFiniteError:
            for place, values in before:
                place.copy_(values)
            taught.skipped += 1
            return False
        for task, count in batch.counts.items():
            taught.add(task, losses[task], count)
        return True

    def _learn(self, batch: Batch, balance: Balance | None) -> None:
        """Let the weighting learn from a step, unless float16 cannot hold what came of it."""
        if balance is not None:
            with suppress(NotFiniteError):
                self._gradient.learn(batch, balance)

    def _train_privately(
        self,
        data: ClientData,
        weights: Mapping[str, float],
        round_number: int,
        generator: torch.Generator | None,
        phase: Phase,
        draws: Draws,
    ) -> dict[str, Sums]:
        """Train for a phase's epochs by DP-SGD."""
        self.model.train()
        self.model.give_generator(generator)
        if self._row_gradients is None:
            self._row_gradients = RowGradients(self.experiment, self.model, self.flat)
        counts = np.array([len(data.train)], np.int64)
        privacy = RowPrivacy.of(self.experiment, counts, draws, self.flat.values.device)
        optimiser = self._make_optimiser(round_number, phase, privacy.steps)
        steps = PrivateAutograd(
            self._row_gradients,
            self.parts[phase.moves],
            BatchSource(data.train, self.flat.values.device, resident=data.resident),
            weights,
            optimiser,
            privacy,
        )
        for _ in range(phase.epochs):
            steps.take_epoch()
        return steps.sums

    def _make_optimiser(self, round_number: int, phase: Phase, batches: Index) -> Optimiser:
        """Make a phase's optimiser; `batches`, int64 [1], are the steps of one of its epochs."""
        return phase.optimiser(
            self.flat.values.unsqueeze(0),
            settings_of_round(self.experiment, round_number),
            self.parts,
            self.flat.gradients.unsqueeze(0),
            self._schedule.rates(batches * phase.epochs),
        )
