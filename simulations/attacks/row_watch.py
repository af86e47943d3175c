"""What a server sees of canary rows: how far a client's updates go against their gradients.

The white-box score of Steinke, Nasr & Jagielski 2023, section 5: ``-sum_t <g / |g|, u_t>`` over the
rounds, with u the client's update of the trunk, and g a canary's gradient at the trunk received.
The auditor knows the client's heads as well, which it has after the round before.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from common.agreement import input_shapes
from common.dataset import Rows
from common.experiment import Experiment
from common.losses import ROW_LOSSES
from common.model import build_model
from common.wire import FloatArray
from server.federation import initial_trunk
from simulations.attacks.canary_rows import CanaryRows
from simulations.hostile import Hostile

CHUNK = 64  # canaries whose gradients are in memory together

ReadHeads = Callable[[], Mapping[str, FloatArray]]


class RowWatch(Hostile):
    """Looks on at what one client sends, and changes nothing.

    Args:
        rows: with the canaries.

    Attributes:
        read_own: gets what the client keeps at home; set once there is an engine.
        scores: float64 [m], high where a canary seems to be in.
        taken: rounds that the client took part in.
    """

    read_own: ReadHeads

    def __init__(self, rows: CanaryRows) -> None:
        super().__init__("watched", frozenset({rows.client}))
        self.rows, self.taken = rows, 0
        self.scores = np.zeros(len(rows.included))
        self._heads: Mapping[str, FloatArray] = {}
        self._gradients: CanaryGradients | None = None

    def distort(self, client: str, before: FloatArray, row: FloatArray) -> FloatArray:
        """Look at what a client sends; it is sent as it is."""
        if client == self.rows.client:
            self.taken += 1
            if self._gradients is None:
                self._gradients = CanaryGradients(self.rows)
            self.scores -= self._gradients.along(before, row - before, self._heads)
            own = {name: np.array(array) for name, array in self.read_own().items()}
            self._heads = own
        return row


class CanaryGradients:
    """The gradients of canaries, one of each, in the order in which a trunk is sent.

    Args:
        rows: with the canaries, of a run that has begun.
    """

    def __init__(self, rows: CanaryRows) -> None:
        if rows.agreement is None or rows.canaries is None:
            raise RuntimeError("the client's rows were never encoded")
        self.experiment: Experiment = rows.experiment
        self.canaries: Rows = rows.canaries
        self.model = build_model(self.experiment, input_shapes(rows.agreement)).eval()
        self.values = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.weights = self.experiment.task_weights()
        sent = initial_trunk(self.experiment, rows.agreement)
        self.shapes = {name: a.shape for name, a in sent.items() if name in self.values}
        level = self.experiment.privacy.example_level
        self.whole = level is None or level.covers == "model"

    def along(
        self, before: FloatArray, update: FloatArray, own: Mapping[str, FloatArray]
    ) -> NDArray[np.float64]:
        """Compute the products of an update with every canary's gradient, scaled to length 1.

        Args:
            before: [Q], the trunk that the update starts from.
            update: [Q].
            own: what the client keeps, by name; what is none of the model's parameters, or not
                there, is left as it was.

        Returns:
            [m].
        """
        trunk, step = self._cut(before), self._cut(update)
        self.values |= {n: torch.from_numpy(a).float() for n, a in own.items() if n in self.values}
        self.values |= trunk

        products = []
        for start in range(0, len(self.canaries), CHUNK):
            chunk = self.canaries.select(slice(start, start + CHUNK))
            gradients = vmap(grad(self._loss), in_dims=(None, 0, 0))(
                self.values, chunk.inputs, chunk.targets
            )
            flat = {name: g.flatten(1) for name, g in gradients.items()}
            measured = flat.values() if self.whole else [flat[name] for name in step]
            squares = sum((g.square().sum(1) for g in measured), torch.zeros(()))
            product = sum((flat[n] @ s.flatten() for n, s in step.items()), torch.zeros(()))
            products.append(product / squares.sqrt().clamp(min=1e-12))
        return torch.cat(products).double().numpy()

    def _cut(self, row: FloatArray) -> dict[str, Tensor]:
        """Cut a flat trunk into its parameters; what travels beside the model is left out."""
        sizes = [int(np.prod(shape)) for shape in self.shapes.values()]
        parts = np.split(row[: sum(sizes)], np.cumsum(sizes)[:-1])
        return {
            name: torch.from_numpy(part.reshape(shape).copy()).float()
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def _loss(
        self, values: dict[str, Tensor], inputs: dict[str, Tensor], targets: dict[str, Tensor]
    ) -> Tensor:
        """Compute the weighted loss of one row, without its batch dimension."""
        one = {name: value.unsqueeze(0) for name, value in inputs.items()}
        outputs, _ = functional_call(self.model, values, (one, list(targets)))
        terms = [
            self.weights[task]
            * ROW_LOSSES[self.experiment.tasks[task].kind](outputs[task], target.unsqueeze(0)).sum()
            for task, target in targets.items()
        ]
        return torch.stack(terms).sum()
