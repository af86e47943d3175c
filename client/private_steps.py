"""Steps of DP-SGD on stacked models: rows are clipped by their norms, without their gradients.

A dense layer's gradient of one row is the outer product of the slope s of its outputs and its
inputs x, of squared norm ``|s|^2 |x|^2`` (Goodfellow, "Efficient per-example gradient
computations", 2015). One backward pass finds the slopes; from these come every row's norm over all
layers, its factor f, and the clipped sum ``sum_i f_i s_i x_i^T`` (Lee & Kifer, "Scaling up
differentially private deep learning with fast per-example gradient clipping", PoPETs 2021).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from client.batches import Index
from client.cohort_steps import Steps
from client.flat import TRUNK
from client.optimisers import Part
from client.row_privacy import RowPrivacy, clip_factors
from client.stacked_layers import Dense


class ClippedSum:
    """Takes a batch's slopes, and sums the gradients of its rows, each clipped.

    A sink of `client.stacked_layers`.

    Args:
        columns: bool [P], what moves; the gradient of nothing else is looked at.
        gradients: float32 [K', P], takes the sums.
        real: float32 [K', B], 0 for padding.
    """

    def __init__(self, columns: Sequence[bool], gradients: Tensor, real: Tensor) -> None:
        self.columns, self.gradients = columns, gradients
        self.squares = torch.zeros_like(real)
        self._dense: list[tuple[Dense, Tensor, Tensor]] = []
        self._vectors: list[tuple[slice, Tensor]] = []

    def weight(self, layer: Dense, slope: Tensor) -> None:
        """Take the slopes of a layer's outputs, [K', B, out], with its inputs."""
        if self.columns[layer.place.start]:
            # A copy: layers below write over their outputs in their own backward.
            self._dense.append((layer, slope, layer.inputs.clone()))
            self.squares += slope.square().sum(2) * layer.inputs.square().sum(2)

    def vector(self, place: slice, vector: Tensor, rows: Tensor) -> None:
        """Take the rows' gradients of a vector, [K', B, width]."""
        if self.columns[place.start]:
            self._vectors.append((place, rows))
            self.squares += rows.square().sum(2)

    def finish(self, max_norm: float) -> None:
        """Write the sums over rows of the gradients, none longer than `max_norm`."""
        factors = clip_factors(self.squares, max_norm).unsqueeze(2)
        broken = None if bool(self.squares.isfinite().all()) else ~self.squares.isfinite()
        for layer, slope, inputs in self._dense:
            whole = self._mend(slope, broken) * factors
            sums = torch.bmm(whole.transpose(1, 2), self._mend(inputs, broken))
            self.gradients[:, layer.place] = sums.flatten(1)
        for place, rows in self._vectors:
            self.gradients[:, place] = (self._mend(rows, broken) * factors).sum(1)

    @staticmethod
    def _mend(rows: Tensor, broken: Tensor | None) -> Tensor:
        """Put 0 in the place of rows whose gradient is no number: 0 times infinity is none."""
        return rows if broken is None else rows.masked_fill(broken.unsqueeze(2), 0)


class PrivateSteps(Steps):
    """The noisy steps of one cohort in one phase.

    A step's gradient is ``(sum_i clip(g_i) + z C N(0, 1)) / (q n)`` for each client, with g_i the
    gradient of ``sum_t w_t m_it l_it``, the row's weighted losses of the tasks that it has a label
    of. The divisor does not depend on who was drawn, or on who has labels. A task that a client
    holds takes part in each of its steps, with noise alone where no row of a batch has its label.
    Rates of regularisation and what an algorithm adds to a gradient depend on parameters only; they
    are added to the noisy gradient.

    Attributes:
        counts: float64 [K, T], labelled rows that the losses in `sums` were summed over.
    """

    def __init__(
        self, *arguments: Any, gradients: Tensor, members: Index, privacy: RowPrivacy
    ) -> None:
        super().__init__(*arguments)
        self.gradients = gradients
        self.privacy, store = privacy, self.store
        self.row_counts, self.starts = store.counts[members], store.starts[members]
        self.counts = np.zeros((len(members), len(store.tasks)))
        self._held = torch.from_numpy(store.label_counts[members] > 0).to(self.values.device)
        self._everywhere = bool(self._held[:, [t in store.taught for t in store.tasks]].all())
        moves = torch.zeros(self.values.shape[1], dtype=torch.bool)
        holds = torch.zeros_like(self.values)  # 1 where a client's parameter moves
        for name, part in self.parts.items():
            for place in part.places:
                moves[place] = True
                if name == TRUNK:
                    holds[:, place] = 1
                elif name in store.tasks:
                    holds[:, place] = self._held[:, store.tasks.index(name), None].float()
        self._columns: list[bool] = moves.tolist()
        self._noisy = moves.nonzero().flatten().to(self.values.device)
        holds = holds[:, self._noisy]
        self._holds = None if bool((holds == 1).all()) else holds

    def take_epoch(self) -> None:
        """Take an epoch's steps."""
        for number in range(int(self.privacy.steps.max(initial=0))):
            self._take(int((self.privacy.steps > number).sum()))

    def _take(self, clients: int) -> None:
        """Take a step of the first clients."""
        store = self.store
        rows, real = self._draw(clients)
        targets = store.targets[rows]
        counted = real.unsqueeze(2).expand(-1, -1, len(store.tasks))
        if store.labelled is not None:
            counted = counted * store.labelled[rows]
        outputs = torch.empty_like(targets)
        self._bind(clients)
        for layer in self.model.counting:
            layer.counts = real.sum(1).to(torch.int64).cpu().numpy()
        sink = ClippedSum(self._columns, self.gradients[:clients], real)
        share = counted @ self.scales.spread
        self.model.step(store.inputs[rows], targets, share, outputs, sink)
        sink.finish(self.privacy.max_norm)
        self._add_noise(clients)
        self.optimiser.step(clients, self._moving(clients))
        self.sums[:clients] += self._sum_losses(outputs, targets, counted)
        self.counts[:clients] += counted.sum(1).cpu().numpy() * (store.label_counts.sum(0) > 0)

    def _draw(self, clients: int) -> tuple[Tensor, Tensor]:
        """Draw rows, int64 [clients, B], by their numbers in the store, and mark what is real."""
        drawn = [self.privacy.draw_rows(k, int(self.row_counts[k])) for k in range(clients)]
        width = max(1, *(len(own) for own in drawn))
        rows = np.repeat(self.starts[:clients, None], width, axis=1)
        real = np.zeros((clients, width), np.float32)
        for place, own in enumerate(drawn):
            rows[place, : len(own)] += own
            real[place, : len(own)] = 1
        device = self.values.device
        return torch.from_numpy(rows).to(device), torch.from_numpy(real).to(device)

    def _add_noise(self, clients: int) -> None:
        """Turn the sums of gradients into noisy means."""
        gradients = self.gradients[:clients]
        expected = torch.from_numpy(self.privacy.expected[:clients, None]).to(gradients)
        gradients /= expected
        noise = self.privacy.draw_noise(clients, len(self._noisy)).to(gradients.device)
        if self._holds is not None:
            noise *= self._holds[:clients]
        if len(self._noisy) == gradients.shape[1]:
            gradients += noise
        else:
            gradients.index_add_(1, self._noisy, noise)

    def _moving(self, clients: int) -> list[Part]:
        """Name what steps: the trunk, and the heads of the tasks that each client holds."""
        if self._everywhere:
            return self.scales.everything
        heads = [
            replace(self.parts[task], active=self._held[:clients, place])
            for place, task in enumerate(self.store.tasks)
            if task in self.store.taught
        ]
        return [self.parts[TRUNK], *heads]
