"""Mixed precision: in what numbers the trunk's products are, and how small gradients survive them.

Micikevicius et al., "Mixed precision training", ICLR 2018: products in 16 bits, parameters and sums
of gradients in float32. bfloat16 has float32's range. float16 has not: gradients below 6e-8 become
0, so the loss is multiplied by a scale first and the gradient divided by it after (section 3.2).
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from client.flat import FlatParameters
from common.errors import ConfigError

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGEST, LEAST = 2.0**16, 1.0
Slopes = Sequence[Tensor | None]
RAISED_AFTER = 2000  # gradients in a row that were finite; as PyTorch's GradScaler


class NotFiniteError(ArithmeticError):
    """A loss or a gradient is not finite, however little it is scaled."""


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision in which a device cannot compute.

    Raises:
        ConfigError: it cannot.
    """
    dtype = DTYPES[precision]
    if dtype is None:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PyTorch says no more where it goes on in float32
            torch.autocast(device.type, dtype)
    except (RuntimeError, UserWarning) as error:
        raise ConfigError(
            f"training.precision must be one that device '{device}' has, got '{precision}', which "
            "PyTorch does not offer there; set 'float32', or training.device to another"
        ) from error


class Backward:
    """Adds gradients to the flat vector; in float16 by way of scaled losses.

    The scale begins at 2^16 in every phase of training, so that a client's round depends on no
    other. It is halved while a gradient overflows: that gradient is computed again from the same
    forward pass, and no step is lost to the search, of which a phase may have a handful only.
    After 2,000 finite gradients it doubles. Powers of two change no digit of a gradient.

    Args:
        flat: the parameters, and where their gradients add up.
        is_scaled: whether losses need a scale.
    """

    def __init__(self, flat: FlatParameters, *, is_scaled: bool) -> None:
        self.flat, self.is_scaled = flat, is_scaled
        self.begin()

    def begin(self) -> None:
        """Begin a phase of training."""
        self.scale, self._finite = LARGEST, 0

    def add(self, total: Tensor, *, again: bool = False) -> None:
        """Add the gradient of `total`, [].

        Args:
            total: a loss.
            again: whether its forward pass is asked for another gradient.

        Raises:
            NotFiniteError: the scaled loss or its gradient is not finite.
        """
        if not self.is_scaled:
            torch.autograd.backward(total, retain_graph=again)
            return
        before = self.flat.gradients.clone()

        def compute(scale: float) -> Slopes:
            self.flat.gradients.zero_()
            torch.autograd.backward(total * scale, retain_graph=True)
            return [self.flat.gradients]

        scale, _ = self._try(total, compute)
        self.flat.gradients.div_(scale).add_(before)

    def find(self, total: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Find the gradient of `total` on some parameters; None on one that it does not reach.

        Raises:
            NotFiniteError: as `add`.
        """

        def compute(scale: float) -> Slopes:
            scaled = total if scale == 1 else total * scale
            return torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)

        if not self.is_scaled:
            return list(compute(1.0))
        scale, found = self._try(total, compute)
        return [None if slope is None else slope / scale for slope in found]

    def _try(self, total: Tensor, compute: Callable[[float], Slopes]) -> tuple[float, Slopes]:
        """Compute a gradient by the largest scale, from the present one down, that it bears."""
        while bool(total.isfinite()):
            scale, found = self.scale, compute(self.scale)
            if all(bool(slope.isfinite().all()) for slope in found if slope is not None):
                self._finite += 1
                if self._finite == RAISED_AFTER:
                    self.scale, self._finite = 2 * scale, 0
                return scale, found
            if scale <= LEAST:
                break
            self.scale, self._finite = scale / 2, 0
        raise NotFiniteError
