"""What a server sees of canary rows: which of them a client's updates are made of.

After Steinke, Nasr & Jagielski 2023, section 5 (white box): an update of the trunk goes against the
gradients of the rows that it was trained on, each scaled to the clipping norm. The auditor, who may
know all other rows as well as the client's heads, finds how much of each row is in an update by
ridge regression of the update on all their gradients; a canary's score is what was found of it. How
much noise there is, the auditor reads off the update, and not from what is claimed.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, vmap

from client.algorithms.algorithm import open_algorithm
from common.agreement import input_shapes
from common.dataset import Rows
from common.losses import ROW_LOSSES
from common.model import build_model
from common.wire import FloatArray
from server.federation import initial_trunk
from simulations.attacks.canary_rows import CanaryRows
from simulations.hostile import Hostile

CHUNK = 64  # rows whose gradients are computed together
MOST_NUMBERS = 2**27  # of all gradients; with more, the client's own rows are left out of them
SHORTEST = 1e-12  # of a gradient's length
RANK = 1e-6  # of the largest eigenvalue, below which a direction is not reached

ReadHeads = Callable[[], Mapping[str, FloatArray]]


class RowWatch(Hostile):
    """Looks on at what one client sends, and changes nothing.

    Args:
        rows: with the canaries.

    Attributes:
        read_own: gets what the client keeps at home; set once there is an engine.
        scores: float64 [m], high where a canary seems to be in; summed over rounds.
        taken: rounds that the client took part in.
    """

    read_own: ReadHeads

    def __init__(self, rows: CanaryRows) -> None:
        super().__init__("watched", frozenset({rows.client}))
        self.rows, self.taken = rows, 0
        self.scores = np.zeros(len(rows.included))
        self._heads: Mapping[str, FloatArray] = {}
        # A client with a trunk of its own goes on from what it sent last.
        self._goes_on = open_algorithm(rows.experiment).KEEPS.get("personal") == "shared"
        self._last: FloatArray | None = None
        self._gradients: RowGradients | None = None

    def distort(self, client: str, before: FloatArray, row: FloatArray) -> FloatArray:
        """Look at what a client sends; it is sent as it is."""
        if client == self.rows.client:
            self.taken += 1
            if self._gradients is None:
                self._gradients = RowGradients(self.rows)
            start = before if self._last is None else self._last
            found = self._gradients.shares(start, row - start, self._heads)
            self._last = row.copy() if self._goes_on else None
            self.scores += found[: len(self.scores)]
            self._heads = {name: np.array(array) for name, array in self.read_own().items()}
        return row


class RowGradients:
    """The gradients of canaries and of the client's other rows, in the order of a sent trunk.

    Args:
        rows: with the canaries, of a run that has begun.
    """

    def __init__(self, rows: CanaryRows) -> None:
        if rows.agreement is None or rows.canaries is None or rows.others is None:
            raise RuntimeError("the client's rows were never encoded")
        self.experiment = rows.experiment
        self.model = build_model(self.experiment, input_shapes(rows.agreement)).eval()
        self.values = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.weights = self.experiment.task_weights()
        sent = initial_trunk(self.experiment, rows.agreement)
        self.shapes = {name: a.shape for name, a in sent.items() if name in self.values}
        level = self.experiment.privacy.example_level
        self.whole = level is None or level.covers == "model"
        size = sum(int(np.prod(shape)) for shape in self.shapes.values())
        count = len(rows.canaries) + len(rows.others)
        fits = count * size <= MOST_NUMBERS and 2 * count <= size
        self.rows = Rows.join([rows.canaries, rows.others]) if fits else rows.canaries

    def shares(
        self, before: FloatArray, update: FloatArray, own: Mapping[str, FloatArray]
    ) -> NDArray[np.float64]:
        """Find how much of each row's gradient, scaled to length 1, is taken off by an update.

        Args:
            before: [Q], the trunk that the update starts from.
            update: [Q].
            own: what the client keeps, by name; what is none of the model's parameters, or not
                there, is left as it was.

        Returns:
            [N], canaries first.
        """
        self.values |= {n: torch.from_numpy(a).float() for n, a in own.items() if n in self.values}
        self.values |= self._cut(before)
        step = torch.cat([part.flatten() for part in self._cut(update).values()])
        return regress(self._unit_gradients(), -step)

    def _unit_gradients(self) -> Tensor:
        """Compute all rows' gradients of the trunk, [N, Q], by the length of what is clipped."""
        parts = []
        for start in range(0, len(self.rows), CHUNK):
            some = self.rows.select(slice(start, start + CHUNK))
            found = vmap(grad(self._loss), in_dims=(None, 0, 0, 0))(
                self.values, some.inputs, some.targets, some.labelled
            )
            flat = {name: gradient.flatten(1) for name, gradient in found.items()}
            trunk = torch.cat([flat[name] for name in self.shapes], 1)
            measured = torch.cat(list(flat.values()), 1) if self.whole else trunk
            parts.append(trunk / measured.norm(dim=1, keepdim=True).clamp(min=SHORTEST))
        return torch.cat(parts)

    def _cut(self, row: FloatArray) -> dict[str, Tensor]:
        """Cut a flat trunk into its parameters; what travels beside the model is left out."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        parts = np.split(row[: sum(sizes)], np.cumsum(sizes)[:-1])
        return {
            name: torch.from_numpy(part.reshape(shape).copy()).float()
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def _loss(
        self,
        values: dict[str, Tensor],
        inputs: dict[str, Tensor],
        targets: dict[str, Tensor],
        labelled: dict[str, Tensor],
    ) -> Tensor:
        """Compute the weighted loss of one row, without its batch dimension."""
        one = {name: value.unsqueeze(0) for name, value in inputs.items()}
        outputs, _ = self.model.call_with(values, one, list(targets))
        terms = [
            self.weights[task]
            * labelled[task]
            * ROW_LOSSES[self.experiment.tasks[task].kind](outputs[task], target.unsqueeze(0)).sum()
            for task, target in targets.items()
        ]
        return torch.stack(terms).sum()


def regress(gradients: Tensor, step: Tensor) -> NDArray[np.float64]:
    """Find how much of each row is in a sum that may have noise.

    With ``s = G^T a + N(0, sigma^2)`` and ``a ~ N(0, tau^2)`` the mean of a is
    ``(G G^T + sigma^2 / tau^2)^-1 G s``. Both variances are estimated by their moments: sigma from
    the part of s that no gradient reaches, tau from the rest.

    Args:
        gradients: G, [N, Q].
        step: s, [Q].

    Returns:
        [N].
    """
    values, vectors = torch.linalg.eigh((gradients @ gradients.T).double())
    values = values.clamp(min=0)
    reached = values > RANK * values.max()
    along = vectors.T @ (gradients @ step).double()
    energy = float((along[reached].square() / values[reached]).sum())
    rank, size = int(reached.sum()), len(step)
    rest = max(float(step.double().square().sum()) - energy, 0.0)
    noise = rest / max(size - rank, 1)
    spread = max((energy - rank * noise) / max(float(values.sum()), SHORTEST), SHORTEST)
    ridge = max(noise / spread, RANK * float(values.max()))
    found: NDArray[np.float64] = (vectors @ (along / (values + ridge))).numpy()
    return found
