"""The gradient of one batch by autograd: forward, weights of the losses, backward.

A plain weighting needs one backward pass; one that asks for the tasks' own gradients takes a pass
per task. Micro-batches go through one after another. Where weights depend on the losses, these must
be known before the first backward pass: the micro-batches go through once more, forward only.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from client.flat import TRUNK, FlatParameters
from client.micro_batches import Batch, MicroBatch
from client.precision import DTYPES, Backward, NotFiniteError
from common.experiment import Experiment
from common.losses import ROW_LOSSES, combine_losses
from common.model import MultiTaskModel
from common.weighting.balance import Balance
from common.weighting.conflict import mean_cosines

Compute = Callable[..., tuple[dict[str, Tensor], Tensor | None]]
Losses = dict[str, Tensor]  # task -> [], its mean over the batch's labelled rows, or a part of that
Found = tuple[Losses, Tensor | None]  # and what the sharing architecture adds


class BatchGradient:
    """Leaves the gradients of batches in the flat vector.

    Args:
        experiment: settings of the run.
        model: one client's model.
        flat: its parameters.
        compute: the model, or what calls it.
    """

    def __init__(
        self,
        experiment: Experiment,
        model: MultiTaskModel,
        flat: FlatParameters,
        compute: Compute,
    ) -> None:
        self.experiment, self.model, self.flat, self.compute = experiment, model, flat, compute
        self.places = {task: place for place, task in enumerate(experiment.tasks)}
        precision = experiment.training.precision
        self.dtype = DTYPES[precision]
        self.backward = Backward(flat, is_scaled=precision == "float16")
        trunk = flat.shared_trunk()
        # Experts side by side have no last layer that all tasks read.
        last = flat.last_shared_layer() if experiment.trunk.sharing == "hard" else trunk
        self._watched = {"last": last, "trunk": trunk}

    def find(self, batch: Batch, weights: Mapping[str, float], balance: Balance | None) -> Losses:
        """Leave the gradient of the weighted losses and the penalty in the flat vector.

        Args:
            batch: of one client.
            weights: task name -> w_t of the round.
            balance: weighs the losses; None where the round's weights are all.

        Returns:
            Task -> [], the mean loss of each task that the batch teaches, detached.

        Raises:
            NotFiniteError: under float16, the gradient is not finite.
        """
        self.flat.gradients.zero_()
        self.model.begin_batch()
        ready = self._forward(batch, batch.micro_batches[0]) if batch.is_whole else None
        if ready is not None:
            losses = {task: loss.detach() for task, loss in ready[0].items()}
        else:
            losses = {} if balance is None else self._measure(batch)
        self._require_finite(losses)
        combines = balance is not None and balance.rules.gradients is not None
        if balance is not None and combines and losses:
            self._combine_gradients(batch, ready, losses, balance)
            return losses
        found = None
        if balance is not None and not combines:
            found = self._weigh(batch, ready, losses, balance)
        for part in batch.micro_batches:
            parts = self._add(ready or self._forward(batch, part), weights, found)
            if ready is None and balance is None:
                losses = _add_up(losses, parts)
        return losses

    def learn(self, batch: Batch, balance: Balance) -> None:
        """Let the weighting learn from the step.

        Raises:
            NotFiniteError: under float16, a loss after the step is not finite.
        """
        after = None
        if balance.rules.weighting.needs_after:
            self.model.begin_batch()
            losses = self._measure(batch)
            self._require_finite(losses)
            after, _ = self._lay_out(losses)
        if balance.rules.gradients is None:
            balance.learn(after)

    def _forward(self, batch: Batch, part: MicroBatch) -> Found:
        """Compute what a part of the batch adds to each task's mean loss, and to the penalty."""
        rows = part.rows
        if not batch.is_whole:
            self.model.take_micro_batch(batch.size, part.place)
        outputs, penalty = self.compute(rows.inputs, tuple(rows.targets), rows.labelled, self.dtype)
        losses: Losses = {}
        for task, count in part.counts.items():
            output, truth, mask = outputs[task], rows.targets[task], rows.labelled[task]
            if count < len(mask):
                output, truth = output[mask], truth[mask]
            mean = ROW_LOSSES[self.experiment.tasks[task].kind](output, truth).mean()
            losses[task] = mean if batch.is_whole else mean * batch.share(part, task)
        if penalty is not None and not batch.is_whole:
            penalty = penalty * (len(rows) / batch.size)
        return losses, penalty

    def _measure(self, batch: Batch) -> Losses:
        """Compute the mean losses of a batch, forward only."""
        total: Losses = {}
        with torch.no_grad():
            for part in batch.micro_batches:
                total = _add_up(total, self._forward(batch, part)[0])
        return {task: total[task] for task in batch.counts}

    def _add(self, computed: Found, weights: Mapping[str, float], found: Tensor | None) -> Losses:
        """Add the gradient of weighted losses and a penalty; returns the losses, detached.

        Args:
            computed: by `_forward`.
            weights: task name -> w_t of the round.
            found: [T], dL / dL_t, where they come from a weighting.
        """
        losses, total = computed
        if losses:
            if found is None:
                weighed = combine_losses(losses, weights)
            else:
                # A dot product would be in half precision under autocast; these are not.
                weighed = torch.stack(list(losses.values())) * found[self._columns(losses)]
                weighed = weighed.sum()
            total = weighed if total is None else total + weighed
        if total is not None and total.requires_grad:  # a frozen trunk's penalty takes none
            self.backward.add(total)
        return {task: loss.detach() for task, loss in losses.items()}

    def _weigh(self, batch: Batch, ready: Found | None, losses: Losses, balance: Balance) -> Tensor:
        """Ask the weighting for dL / dL_t, [T]."""
        norms, cosines = {}, None
        for where in balance.rules.norms:
            norms[where], between = self._gauge(batch, ready, where)
            cosines = between if where == "trunk" else cosines
        values, taught = self._lay_out(losses)
        return balance.weigh(values, taught, norms, cosines)[0]

    def _combine_gradients(
        self, batch: Batch, ready: Found | None, losses: Losses, balance: Balance
    ) -> None:
        """Leave the combined gradient on the trunk, and each task's own on what belongs to it."""
        gradients = balance.rules.gradients
        if gradients is None:
            raise RuntimeError("a loss weighting has no gradients to combine")
        values, taught = self._lay_out(losses)
        _, slopes = balance.scale(values, taught)
        jacobian: dict[str | None, Tensor] = {}
        for part in batch.micro_batches:
            self._add_rows(ready or self._forward(batch, part), slopes[0], jacobian)
        rows, places = torch.stack([jacobian[task] for task in losses]), self._columns(losses)
        combined, weights = gradients.combine(rows, places)
        used, norms = torch.zeros_like(values), torch.zeros_like(values)
        scales = slopes[0, places]
        used[0, places] = weights * scales
        norms[0, places] = torch.where(scales > 0, rows.norm(dim=1) / scales, 0)  # unscaled
        cosines = torch.full_like(values, torch.nan)
        cosines[0, places] = mean_cosines(rows)
        balance.record(used, taught, norms, cosines)
        if None in jacobian:
            combined = combined + jacobian[None]
        start = 0
        for cut in self.flat.layout.segments[TRUNK]:
            stop = start + cut.stop - cut.start
            self.flat.gradients[cut] = combined[start:stop]
            start = stop

    def _add_rows(
        self, computed: Found, slopes: Tensor, jacobian: dict[str | None, Tensor]
    ) -> None:
        """Add to each task's gradient on the trunk, and under None to that of the penalty."""
        losses, penalty = computed
        terms: dict[str | None, Tensor] = {
            task: loss * slopes[self.places[task]] for task, loss in losses.items()
        }
        if penalty is not None:
            terms[None] = penalty
        trunk = self.flat.layout.segments[TRUNK]
        for name, term in terms.items():
            self.backward.add(term, again=True)
            row = torch.cat([self.flat.gradients[cut] for cut in trunk])
            jacobian[name] = jacobian[name] + row if name in jacobian else row
            for cut in trunk:
                self.flat.gradients[cut] = 0

    def _gauge(self, batch: Batch, ready: Found | None, where: str) -> tuple[Tensor, Tensor]:
        """Measure the losses' gradients on the "last" shared layer or the "trunk".

        Returns:
            Their norms, 0 where absent, and their mean cosines, NaN where absent; [1, T] both.
        """
        norms, parameters = self.flat.values.new_zeros(1, len(self.places)), self._watched[where]
        cosines = torch.full_like(norms, torch.nan)
        sums: dict[str, list[Tensor | None]] = {}
        for part in batch.micro_batches:
            slopes = self._slopes(ready or self._forward(batch, part), parameters)
            for task, own in slopes.items():
                sums[task] = [*map(_sum, sums[task], own)] if task in sums else own
        if sums:
            rows = torch.stack([_side_by_side(own, parameters) for own in sums.values()]).to(norms)
            places = [self.places[task] for task in sums]
            norms[0, places], cosines[0, places] = rows.norm(dim=1), mean_cosines(rows)
        return norms, cosines

    def _slopes(
        self, computed: Found, parameters: Sequence[nn.Parameter]
    ) -> dict[str, list[Tensor | None]]:
        """Find each loss's gradient on some parameters."""
        losses, _ = computed
        return {task: self.backward.find(loss, parameters) for task, loss in losses.items()}

    def _require_finite(self, losses: Losses) -> None:
        """Keep losses that are not finite from the weighting, which would remember them.

        Raises:
            NotFiniteError: under float16, one is not.
        """
        if self.backward.is_scaled and not all(bool(v.isfinite()) for v in losses.values()):
            raise NotFiniteError

    def _lay_out(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Lay losses out over all tasks, [1, T], and say which are there."""
        values = self.flat.values.new_zeros(1, len(self.places))
        taught = torch.zeros_like(values, dtype=torch.bool)
        columns = self._columns(losses)
        if losses:
            values[0, columns] = torch.stack([loss.detach().float() for loss in losses.values()])
            taught[0, columns] = True
        return values, taught

    def _columns(self, losses: Losses) -> list[int]:
        return [self.places[task] for task in losses]


def _add_up(total: Losses, more: Losses) -> Losses:
    return {**total, **{task: total[task] + v if task in total else v for task, v in more.items()}}


def _side_by_side(slopes: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Flatten a gradient, [P], with zeros where it does not reach."""
    pairs = zip(slopes, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if s is None else s).reshape(-1) for s, p in pairs])


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
