"""Local training by autograd, one client at a time: for what has no stacked form.

The gradient of every step is left in the flat vector. A plain weighting needs one backward pass;
one that asks for the tasks' own gradients takes a pass per task.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from client.batches import Index, epoch_order, row_patterns, shuffle_key
from client.flat import TRUNK, FlatParameters
from client.optimisers import Optimiser
from client.phases import Parts, Phase
from client.private_autograd import PrivateAutograd, RowGradients
from client.rates import StepSchedule
from client.row_privacy import NO_DRAWS, Draws, RowPrivacy, is_private
from common.dataset import ClientData, Rows
from common.experiment import Experiment
from common.losses import ROW_LOSSES, combine_losses
from common.metrics import Sums
from common.model import MultiTaskModel
from common.schedules.rates import settings_of_round
from common.seeding import derive_key
from common.weighting.balance import Balance
from common.weighting.conflict import mean_cosines


@dataclass
class Taught:
    """Training losses of a client's round, task by task, as means over batches.

    Attributes:
        means: task -> mean loss of each batch that taught it.
        counts: task -> labelled rows of these batches.
    """

    means: dict[str, list[Tensor]] = field(default_factory=dict)
    counts: dict[str, list[int]] = field(default_factory=dict)

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
        compute: Callable[..., tuple[dict[str, Tensor], Tensor | None]],
    ) -> None:
        self.experiment, self.model, self.flat, self.parts = experiment, model, flat, parts
        self.compute = compute
        self.places = {task: place for place, task in enumerate(experiment.tasks)}
        trunk = flat.shared_trunk()
        # Experts side by side have no last layer that all tasks read.
        last = flat.last_shared_layer() if experiment.trunk.sharing == "hard" else trunk
        self._watched = {"last": last, "trunk": trunk}
        self._row_gradients: RowGradients | None = None
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
        self.model.train()
        self.model.give_generator(generator)
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
                rows = data.train.select(torch.from_numpy(order)).to(self.flat.values.device)
                for start in range(0, len(order), settings.batch_size):
                    batch = rows.select(slice(start, start + settings.batch_size))
                    losses, penalty = self._forward(batch, taught)
                    self._backward(losses, penalty, weights, balance)
                    optimiser.step(1, [parts[name] for name in (TRUNK, *losses)])
                    if balance is not None:
                        self._learn(batch, balance)
                if phase.stopping and not phase.stopping.goes_on(self.flat.values.unsqueeze(0)):
                    break
            if phase.stopping:
                phase.stopping.finish(self.flat.values.unsqueeze(0))
        return {task: taught.sums(task) for task in data.tasks}

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
            data.train,
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

    def _forward(
        self, rows: Rows, taught: Taught | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Compute the mean loss of each task that one batch teaches, and note it in `taught`.

        Returns:
            Task -> []; and what the sharing architecture adds, [] or None.
        """
        outputs, penalty = self.compute(rows.inputs, tuple(rows.targets), rows.labelled)
        losses: dict[str, Tensor] = {}
        for task, mask in rows.labelled.items():
            count = int(mask.sum())
            if not count:
                continue
            output, truth = outputs[task], rows.targets[task]
            if count < len(mask):
                output, truth = output[mask], truth[mask]
            losses[task] = ROW_LOSSES[self.experiment.tasks[task].kind](output, truth).mean()
            if taught is not None:
                taught.add(task, losses[task], count)
        return losses, penalty

    def _backward(
        self,
        losses: Mapping[str, Tensor],
        penalty: Tensor | None,
        weights: Mapping[str, float],
        balance: Balance | None,
    ) -> None:
        """Leave the gradient of the weighted losses and the penalty in the flat vector."""
        self.flat.gradients.zero_()
        total: Tensor | None
        if balance is not None and balance.rules.gradients is not None:
            if losses:
                self._combine_gradients(losses, balance)
            total = penalty
        else:
            total = self._weigh(losses, weights, balance)
            if penalty is not None:
                total = penalty if total is None else total + penalty
        if total is not None:
            torch.autograd.backward(total)

    def _weigh(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], balance: Balance | None
    ) -> Tensor | None:
        """Weigh the losses and sum them, []; None in a batch without a label."""
        if balance is None:
            return combine_losses(losses, weights) if losses else None
        norms, cosines = {}, None
        for where in balance.rules.norms:
            norms[where], between = self._measure(losses, where)
            cosines = between if where == "trunk" else cosines
        values, taught = self._lay_out(losses)
        found = balance.weigh(values, taught, norms, cosines)[0]
        if not losses:
            return None
        # A dot product would be in half precision under autocast; a product and a sum are not.
        return (torch.stack(list(losses.values())) * found[self._columns(losses)]).sum()

    def _combine_gradients(self, losses: Mapping[str, Tensor], balance: Balance) -> None:
        """Leave the combined gradient on the trunk, and each task's own on what belongs to it."""
        gradients = balance.rules.gradients
        if gradients is None:
            raise RuntimeError("a loss weighting has no gradients to combine")
        values, taught = self._lay_out(losses)
        _, slopes = balance.scale(values, taught)
        places, trunk = self._columns(losses), self.flat.layout.segments[TRUNK]
        jacobian = []
        for loss, place in zip(losses.values(), places, strict=True):
            torch.autograd.backward(loss * slopes[0, place], retain_graph=True)
            jacobian.append(torch.cat([self.flat.gradients[cut] for cut in trunk]))
            for cut in trunk:
                self.flat.gradients[cut] = 0
        rows = torch.stack(jacobian)
        combined, weights = gradients.combine(rows, places)
        used, norms = torch.zeros_like(values), torch.zeros_like(values)
        cosines = torch.full_like(values, torch.nan)
        scales = slopes[0, places]
        used[0, places] = weights * scales
        norms[0, places] = torch.where(scales > 0, rows.norm(dim=1) / scales, 0)  # unscaled
        cosines[0, places] = mean_cosines(rows)
        balance.record(used, taught, norms, cosines)
        start = 0
        for cut in trunk:
            stop = start + cut.stop - cut.start
            self.flat.gradients[cut] = combined[start:stop]
            start = stop

    def _measure(self, losses: Mapping[str, Tensor], where: str) -> tuple[Tensor, Tensor]:
        """Measure the losses' gradients on the "last" shared layer or the "trunk".

        Returns:
            Their norms, 0 where absent, and their mean cosines, NaN where absent; [1, T] both.
        """
        norms, parameters = self.flat.values.new_zeros(1, len(self.places)), self._watched[where]
        cosines = torch.full_like(norms, torch.nan)
        gradients = []
        for loss in losses.values():
            slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            pairs = zip(slopes, parameters, strict=True)
            found = [torch.zeros_like(p) if slope is None else slope for slope, p in pairs]
            gradients.append(torch.cat([slope.reshape(-1) for slope in found]))
        if gradients:
            rows, places = torch.stack(gradients).to(norms), self._columns(losses)
            norms[0, places], cosines[0, places] = rows.norm(dim=1), mean_cosines(rows)
        return norms, cosines

    def _learn(self, batch: Rows, balance: Balance) -> None:
        """Let the weighting learn from the step."""
        after = None
        if balance.rules.weighting.needs_after:
            with torch.no_grad():
                after, _ = self._lay_out(self._forward(batch)[0])
        if balance.rules.gradients is None:
            balance.learn(after)

    def _lay_out(self, losses: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Lay losses out over all tasks, [1, T], and say which are there."""
        values = self.flat.values.new_zeros(1, len(self.places))
        taught = torch.zeros_like(values, dtype=torch.bool)
        columns = self._columns(losses)
        if losses:
            values[0, columns] = torch.stack([loss.detach().float() for loss in losses.values()])
            taught[0, columns] = True
        return values, taught

    def _columns(self, losses: Mapping[str, Tensor]) -> list[int]:
        return [self.places[task] for task in losses]
