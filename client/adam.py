"""Adam and AdamW on rows of parameters, one row per client."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.optimisers import GradientStore, Part, column, keep_state
from client.rates import Factors
from common.methods import make_options
from common.optimisers.table import OPTIMISERS
from common.sections.training import Training


class Adam(GradientStore):
    """Adam (Kingma & Ba 2015, Algorithm 1) and AdamW (Loshchilov & Hutter 2019, Algorithm 2).

    The published defaults: betas 0.9 and 0.999, epsilon 1e-8. With `decoupled` the weight decay is
    AdamW's ``w <- w - lr * decay * w``; else it is added to the gradient. With ``amsgrad`` the
    largest second moment so far stands in the root (Reddi et al. 2018, Algorithm 2, in the form of
    torch.optim, which corrects its bias too).
    """

    def __init__(
        self,
        values: Tensor,
        settings: Training,
        gradients: Tensor | None = None,
        *,
        decoupled: bool,
    ) -> None:
        super().__init__(values, gradients)
        self.settings, self.decoupled = settings, decoupled
        options = make_options(OPTIMISERS, settings.optimiser, settings.optimiser_options)
        (self.beta1, self.beta2), self.epsilon = options.betas, options.eps
        self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)
        self.largest = torch.zeros_like(values) if options.amsgrad else None
        # Steps taken by client, of parts that step for all clients and of those by `Part.active`.
        self.taken: dict[str, NDArray[np.int64]] = {}  # part -> [K]
        self.some_taken: dict[str, Tensor] = {}  # part -> float64 [K, 1]

    def step(self, rows: int, parts: Sequence[Part]) -> None:
        """Move the first `rows` clients' parameters of these parts against their gradients.

        A part steps either always for all clients, or always by `Part.active`.
        """
        rate = self.begin(rows, parts, self.settings)
        for part in parts:
            if part.active is None:
                self._step_all(rows, part, rate)
            else:
                self._step_some(rows, part, part.active, rate)

    def _step_all(self, rows: int, part: Part, rate: float | Factors) -> None:
        """Step in place, in the order of torch.optim's operations."""
        if part.name not in self.taken:
            self.taken[part.name] = np.zeros(len(self.values), np.int64)
        taken = self.taken[part.name][:rows]
        taken += 1
        size, root = self._corrections(taken, rate)
        shrink = column(1 - rate * part.decay, self.values)
        for place in part.places:
            weight, slope, first, second = self._cut(rows, place, part)
            if part.decay and self.decoupled:
                weight.mul_(shrink)
            first.lerp_(slope, 1 - self.beta1)
            second.mul_(self.beta2).addcmul_(slope, slope, value=1 - self.beta2)
            below = self._largest(rows, place, second).sqrt().div_(root).add_(self.epsilon)
            if isinstance(size, Tensor):
                weight.sub_((first / below).mul_(size))
            else:
                weight.addcdiv_(first, below, value=-size)

    def _corrections(
        self, taken: NDArray[np.int64], rate: float | Factors
    ) -> tuple[float | Tensor, float | Tensor]:
        """Correct the bias of the moments: step size and root, [K, 1] where clients differ."""
        first = int(taken[0])
        if (taken == first).all() and isinstance(rate, float):
            return rate / (1 - self.beta1**first), float((1 - self.beta2**first) ** 0.5)
        size = rate / (1 - self.beta1 ** taken.astype(np.float64))
        root = np.sqrt(1 - self.beta2 ** taken.astype(np.float64))
        both = torch.from_numpy(np.stack([size, root])[:, :, None]).to(self.values)
        return both[0], both[1]

    def _step_some(self, rows: int, part: Part, active: Tensor, rate: float | Factors) -> None:
        """Step for the active clients; the state of the others stays as it is."""
        values = self.values
        if part.name not in self.some_taken:
            zeros = torch.zeros(len(values), 1, dtype=torch.float64)
            self.some_taken[part.name] = zeros.to(values.device)
        chosen = active.unsqueeze(1)
        taken = self.some_taken[part.name][:rows].add_(chosen).clamp(min=1)
        size = (column(rate, taken) / (1 - self.beta1**taken)).to(values.dtype) * chosen
        root = (1 - self.beta2**taken).sqrt().to(values.dtype)
        decay = column(rate * part.decay * self.decoupled, values)
        for place in part.places:
            weight, slope, first, second = self._cut(rows, place, part)
            if part.decay and self.decoupled:
                weight.sub_(weight * chosen * decay)
            keep_state(first, torch.lerp(first, slope, 1 - self.beta1), part)
            squares = (second * self.beta2).addcmul_(slope, slope, value=1 - self.beta2)
            keep_state(second, squares, part)
            below = (self._largest(rows, place, second).sqrt() / root).add_(self.epsilon)
            weight.sub_(first / below * size)

    def _largest(self, rows: int, place: slice, second: Tensor) -> Tensor:
        """Get what stands in the root; of clients that stood still the largest stays the same."""
        if self.largest is None:
            return second
        largest = self.largest[:rows, place]
        return torch.maximum(largest, second, out=largest)

    def _cut(self, rows: int, place: slice, part: Part) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cut out parameters, their gradient with the part's penalties, and both moments."""
        slope = self.slope(rows, place, 0.0 if self.decoupled else part.decay, part.l1)
        weight = self.values[:rows, place]
        return weight, slope, self.first[:rows, place], self.second[:rows, place]
