"""Steps of DP-SGD by autograd, one client at a time: for what has no stacked form.

Opacus' hooks find the gradient of every row layer by layer (Yousefpour et al., "Opacus: User-
friendly differential privacy library in PyTorch", 2021). A model with parameters that no layer's
hook sees, such as cross-stitch units, goes row by row instead; so does a ready model, which may
have any, and whose layers may read something else than the rows (position embeddings do).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from client.batch_source import BatchSource
from client.batches import Index
from client.flat import TRUNK, FlatParameters
from client.optimisers import Optimiser, Part
from client.row_privacy import RowPrivacy, clip_factors
from common.dataset import Rows
from common.errors import ConfigError
from common.experiment import Experiment
from common.losses import ROW_LOSSES
from common.metrics import Sums
from common.model import MultiTaskModel


class RowGradients:
    """Finds the gradient of every row of a batch, [B, P].

    Args:
        experiment: kinds of the tasks.
        model: one client's model.
        flat: its parameters.

    Raises:
        ConfigError: Opacus is needed and not installed.
    """

    def __init__(self, experiment: Experiment, model: MultiTaskModel, flat: FlatParameters) -> None:
        self.experiment, self.model, self.flat = experiment, model, flat
        unseen = any(isinstance(module, nn.ParameterList) for module in model.modules())
        self.by_row = unseen or experiment.trunk.is_ready
        self._open_hooks = None if self.by_row else _import_hooks()

    def find(self, batch: Rows, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Find the rows' gradients of ``sum_t w_t m_it l_it``, and their losses.

        Args:
            batch: B rows, one or more.
            weights: task name -> w_t.

        Returns:
            [B, P]; and task name -> [B], 0 where a row has no label of it.
        """
        if not self.by_row:
            return self._find_by_hooks(batch, weights)
        found, losses = [], []
        for row in range(len(batch)):
            total, own = self._loss(batch.select(slice(row, row + 1)), weights)
            self.flat.gradients.zero_()
            torch.autograd.backward(total)
            found.append(self.flat.gradients.clone())
            losses.append(own)
        return torch.stack(found), {t: torch.cat([own[t] for own in losses]) for t in losses[0]}

    def _find_by_hooks(
        self, batch: Rows, weights: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.flat.values.new_zeros(len(batch), len(self.flat.values))
        hooks = self._open_hooks(self.model, loss_reduction="sum", strict=False)  # type: ignore[misc]
        # A hook on a layer whose inputs need no gradient makes PyTorch warn.
        inputs = {name: values.detach().requires_grad_() for name, values in batch.inputs.items()}
        try:
            total, losses = self._loss(replace(batch, inputs=inputs), weights)
            torch.autograd.backward(total)
            for name, parameter in self.model.named_parameters():
                rows = getattr(parameter, "grad_sample", None)
                if rows is not None:  # what no loss of these tasks depends on has none
                    found[:, self.flat.layout.slices[name]] = rows.detach().flatten(1)
        finally:
            hooks.cleanup()
            self._forget()
        return found, losses

    def _loss(self, batch: Rows, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, _ = self.model(batch.inputs, tuple(batch.targets))
        losses = {}
        for task, mask in batch.labelled.items():
            row_loss = ROW_LOSSES[self.experiment.tasks[task].kind]
            # Rows without a label have a target of 0 in their place, which fits every loss.
            losses[task] = torch.where(mask, row_loss(outputs[task], batch.targets[task]), 0)
        total = torch.stack([weights[task] * own.sum() for task, own in losses.items()]).sum()
        return total, {task: own.detach() for task, own in losses.items()}

    def _forget(self) -> None:
        """Drop what hooks leave at layers that no loss depended on."""
        for module in self.model.modules():
            for name in ("activations", "max_batch_len"):
                if name in module.__dict__:
                    delattr(module, name)


def _import_hooks() -> Any:
    try:
        from opacus.grad_sample.grad_sample_module import GradSampleHooks
    except ImportError as error:
        raise ConfigError(
            "[privacy.example-level] needs the library opacus for a model without a stacked form, "
            "which is not installed: pip install 'fedmtl[privacy]'"
        ) from error
    return GradSampleHooks


class PrivateAutograd:
    """The noisy steps of one client in one phase; see `client.private_steps.PrivateSteps`.

    Attributes:
        sums: task name -> [loss summed so far, labelled rows it was summed over].
    """

    def __init__(
        self,
        rows: RowGradients,
        parts: Mapping[str, Part],
        source: BatchSource,
        weights: Mapping[str, float],
        optimiser: Optimiser,
        privacy: RowPrivacy,
    ) -> None:
        self.rows, self.source, self.weights = rows, source, weights
        data = source.rows
        self.optimiser, self.privacy, self.flat = optimiser, privacy, rows.flat
        held = [task for task, mask in data.labelled.items() if bool(mask.any())]
        self.parts = [parts[name] for name in (TRUNK, *held)]
        self.sums: dict[str, Sums] = {task: [0.0, 0.0] for task in data.targets}
        self._moves = _mark(self.flat, parts.values())
        self._holds = _mark(self.flat, self.parts)

    def take_epoch(self) -> None:
        """Take an epoch's steps."""
        for _ in range(int(self.privacy.steps[0])):
            drawn = self.privacy.draw_rows(0, len(self.source.rows))
            total = self._sum_clipped(drawn) / float(self.privacy.expected[0])
            noise = self.privacy.draw_noise(1, int(self._moves.sum()))[0].to(total.device)
            total[self._moves] += noise
            total[~self._holds] = 0
            self.flat.gradients.copy_(total)
            self._add_penalty()
            self.optimiser.step(1, self.parts)

    def _sum_clipped(self, drawn: Index) -> Tensor:
        """Sum the clipped gradients of rows, [P]; 0 for none."""
        total = torch.zeros_like(self.flat.values)
        if not len(drawn):
            return total
        batch = self.source.take(torch.from_numpy(drawn))
        size = self.rows.experiment.training.micro_batch or len(batch)
        self.rows.model.begin_batch()
        for start in range(0, len(batch), size):
            if size < len(batch) and not self.rows.by_row:
                self.rows.model.take_micro_batch(len(batch), slice(start, start + size))
            total += self._sum_micro_batch(batch.select(slice(start, start + size)))
        return total

    def _sum_micro_batch(self, rows: Rows) -> Tensor:
        """Sum the clipped gradients of some rows of a batch, [P], whose memory is [rows, P]."""
        gradients, losses = self.rows.find(rows, self.weights)
        for task, own in losses.items():
            self.sums[task][0] += float(own.double().sum())
            self.sums[task][1] += float(rows.labelled[task].sum())
        return clipped_sum(gradients * self._holds, self.privacy.max_norm)

    def _add_penalty(self) -> None:
        """Add the gradient of what the architecture adds to the loss, by parameters alone."""
        with torch.enable_grad():
            penalty = self.rows.model.trunk.penalty({}, {})
            if penalty is not None and penalty.requires_grad:
                torch.autograd.backward(penalty)  # adds into the flat vector


def clipped_sum(gradients: Tensor, max_norm: float) -> Tensor:
    """Sum rows' gradients, [B, P] -> [P], none longer than `max_norm`."""
    squares = gradients.square().sum(1)
    factors = clip_factors(squares, max_norm)
    whole = gradients.masked_fill(~squares.isfinite().unsqueeze(1), 0)
    return factors @ whole


def _mark(flat: FlatParameters, parts: Iterable[Part]) -> Tensor:
    marked = torch.zeros_like(flat.values, dtype=torch.bool)
    for part in parts:
        for place in part.places:
            marked[place] = True
    return marked
