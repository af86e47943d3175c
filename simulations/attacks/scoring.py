"""How near a reconstruction comes to the rows that were trained on, and how near a guess would."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from common.dataset import Rows
from common.encoding import scaling_for
from common.experiment import Experiment
from common.fitted import Fitted
from simulations.attacks.intervals import bootstrap
from simulations.attacks.wire import Wire

WINDOW = 7  # pixels, of SSIM's local means
# Constants of SSIM for values from 0 to 1 (Wang et al. 2004: K1 = 0.01, K2 = 0.03).
C1, C2 = 0.01**2, 0.03**2


@dataclass(frozen=True)
class Frame:
    """How encoded inputs become what a person reads: pixels from 0 to 1, other inputs as encoded.

    Attributes:
        experiment: names the inputs.
        scales: image inputs -> (mean, deviation), [channels] each.
    """

    experiment: Experiment
    scales: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, wire: Wire, fitted: Fitted) -> "Frame":
        """Make the frame of a client's rows."""
        scales = {}
        for name, settings in wire.experiment.inputs.items():
            if settings.kind != "image" or settings.standardise == "none":
                continue
            scaling = scaling_for(name, wire.experiment, wire.agreement, fitted)
            scales[name] = (torch.from_numpy(scaling.mean), torch.from_numpy(scaling.deviation))
        return cls(wire.experiment, scales)

    def show(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return image inputs to their unit, float64 [N, C, H, W]; others are left as they are."""
        shown = {}
        for name, values in inputs.items():
            values = values.detach().double()
            if name in self.scales:
                mean, deviation = (part.reshape(1, -1, 1, 1) for part in self.scales[name])
                values = values * deviation + mean
            shown[name] = values
        return shown

    def flat(self, inputs: Mapping[str, Tensor]) -> NDArray[np.float64]:
        """Lay all that is shown side by side, [N, D]."""
        shown = self.show(inputs)
        return torch.cat([shown[n].flatten(1) for n in self.experiment.inputs], 1).numpy()


@dataclass(frozen=True)
class Match:
    """Guessed rows beside true ones.

    Attributes:
        true: int64 [L], places among the true rows.
        guessed: int64 [L], the place of the guess that goes with each.
        mse: float64 [L], mean squared error of each pair.
    """

    true: NDArray[np.int64]
    guessed: NDArray[np.int64]
    mse: NDArray[np.float64]


def match(true: NDArray[np.float64], guessed: NDArray[np.float64]) -> Match:
    """Pair rows so that the sum of squared errors is least (Kuhn's Hungarian method).

    An update does not tell the order of its rows, so a guess is not held to one.

    Args:
        true: [N, D].
        guessed: [M, D]; the smaller number of rows is paired.
    """
    squares = (true**2).sum(1)[:, None] + (guessed**2).sum(1) - 2 * true @ guessed.T
    rows, columns = linear_sum_assignment(squares)
    mse = ((true[rows] - guessed[columns]) ** 2).mean(1)
    return Match(rows.astype(np.int64), columns.astype(np.int64), mse)


def describe(
    true: NDArray[np.float64], guessed: NDArray[np.float64], pair: Match
) -> dict[str, Any]:
    """Describe the errors of paired rows: means with their intervals over rows.

    ``relative`` is ``||guess - row|| / ||row||``.
    """
    one, other = true[pair.true], guessed[pair.guessed]
    lengths = np.maximum(np.linalg.norm(one, axis=1), 1e-12)
    relative = np.linalg.norm(one - other, axis=1) / lengths
    return {"mse": bootstrap(pair.mse), "relative": bootstrap(relative)}


def describe_images(true: Tensor, guessed: Tensor) -> dict[str, Any]:
    """Describe the errors of paired images [L, C, H, W] with values from 0 to 1.

    ``psnr`` in dB is that of the mean squared error of each image: ``-10 log10 mse``.
    """
    guessed = guessed.clamp(0, 1)
    mse = (true - guessed).square().flatten(1).mean(1).clamp(min=1e-12)
    return {
        "psnr-db": bootstrap((-10 * mse.log10()).numpy()),
        "ssim": bootstrap(ssim(true, guessed).numpy()),
    }


def ssim(one: Tensor, other: Tensor) -> Tensor:
    """Compare the structure of images with values from 0 to 1: [N, C, H, W] both -> [N].

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    eq. 13, with uniform windows of 7 pixels, or of the image where it is smaller.
    """
    size = min(WINDOW, *one.shape[-2:])

    def local(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, size, stride=1)

    a, b = local(one), local(other)
    unbiased = size**2 / (size**2 - 1)
    va = unbiased * (local(one * one) - a * a)
    vb = unbiased * (local(other * other) - b * b)
    both = unbiased * (local(one * other) - a * b)
    above = (2 * a * b + C1) * (2 * both + C2)
    alike: Tensor = above / ((a * a + b * b + C1) * (va + vb + C2))
    return alike.flatten(1).mean(1)


def mean_rows(others: Rows, count: int) -> dict[str, Tensor]:
    """Guess the mean of other rows for every row: what anybody can say who has seen no update."""
    return {
        name: values.double().mean(0, keepdim=True).expand(count, *values.shape[1:])
        for name, values in others.inputs.items()
    }


def drawn_rows(others: Rows, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Guess rows of other clients, as many: they profit from pairing as a reconstruction does."""
    order = torch.randperm(len(others), generator=generator)
    chosen = order.repeat(-(-count // len(others)))[:count]
    return {name: values[chosen].double() for name, values in others.inputs.items()}
