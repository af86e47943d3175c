"""Descents of gradient inversion: from a guess to rows whose gradient is the one that was seen.

``dlg``: Zhu, Liu & Han, "Deep leakage from gradients", NeurIPS 2019, eq. 4: L-BFGS on the squared
distance of gradients. ``cosine``: Geiping et al., "Inverting gradients", NeurIPS 2020, eq. 4: their
angle and the image's total variation, by Adam on the signs of the slopes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from common.model import MultiTaskModel
from simulations.attacks.guesses import (
    Guess,
)
from simulations.attacks.inversion_settings import Settings, iterations_of
from simulations.attacks.local_steps import LOCAL
from simulations.attacks.observed import Observed

LBFGS_STEPS = 20  # evaluations in one iteration of L-BFGS, as in Zhu et al.'s code
STANDSTILL = 1e-4  # least gain of such an iteration, as a share, that is worth another
EXACT = 1e-13  # an objective below which nothing is left to gain


def descend_dlg(
    observed: Observed, settings: Settings, model: MultiTaskModel, guess: Guess
) -> float:
    """Fit by L-BFGS: ``||g' - g||^2 / ||g||^2``, Zhu et al.'s but for a constant.

    Of a clipped update the length is unknown: there it is ``min_c ||c g' - g||^2 / ||g||^2``, the
    squared sine of the angle.
    """
    optimiser = torch.optim.LBFGS(
        guess.learned, lr=1.0, max_iter=LBFGS_STEPS, history_size=100,
        tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip
    local, gradient = LOCAL[settings.local], observed.gradient
    size = sum(part.square().sum() for part in gradient.values())
    lowest, kept = float("inf"), [leaf.detach().clone() for leaf in guess.learned]

    def distance() -> Tensor:
        made = local(observed, model, guess)
        if observed.is_clipped:
            return 1 - cosine(made, gradient).square()
        apart = torch.stack([(made[name] - gradient[name]).square().sum() for name in made]).sum()
        return apart / size

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = distance()
        for leaf, slope in zip(guess.learned, _slopes(value, guess.learned), strict=True):
            leaf.grad = slope
        return value.detach()

    for _ in range(iterations_of(settings)):
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        value = float(distance().detach())
        if not value < lowest * (1 - STANDSTILL):  # it stands still, or fell out of the numbers
            break
        lowest, kept = value, [leaf.detach().clone() for leaf in guess.learned]
        if value < EXACT:
            break
    _put(guess, kept)
    return lowest


def descend_cosine(
    observed: Observed, settings: Settings, model: MultiTaskModel, guess: Guess
) -> float:
    """Fit by signed Adam: ``1 - cos(g', g) + tv * TV(x)``, pixels kept within their box."""
    count = iterations_of(settings)
    optimiser = torch.optim.Adam(guess.learned, lr=settings.lr)
    falls = [round(count * share) for share in (3 / 8, 5 / 8, 7 / 8)]  # Geiping et al.'s code
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, falls, gamma=0.1)
    local, gradient = LOCAL[settings.local], observed.gradient
    lowest, kept = float("inf"), [leaf.detach().clone() for leaf in guess.learned]
    for _ in range(count):
        angle = 1 - cosine(local(observed, model, guess), gradient)
        objective = angle + settings.total_variation * total_variation(observed, guess.inputs)
        value = float(objective.detach())
        if value < lowest:
            lowest, kept = value, [leaf.detach().clone() for leaf in guess.learned]
        for leaf, slope in zip(guess.learned, _slopes(objective, guess.learned), strict=True):
            leaf.grad = slope.sign()
        optimiser.step()
        schedule.step()
        _stay_inside(observed, guess)
    _put(guess, kept)
    return lowest


Descent = Callable[[Observed, Settings, MultiTaskModel, Guess], float]
DESCENTS: dict[str, Descent] = {"dlg": descend_dlg, "cosine": descend_cosine}


def cosine(made: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
    """Compute the cosine of the angle between two gradients over all their parameters, []."""
    dot = torch.stack([(made[name] * seen[name]).sum() for name in seen]).sum()
    squares = [torch.stack([g[n].square().sum() for n in seen]).sum() for g in (made, seen)]
    return dot / (squares[0] * squares[1]).clamp(min=1e-300).sqrt()


def total_variation(observed: Observed, inputs: Mapping[str, Tensor]) -> Tensor:
    """Average the steps between neighbouring pixels of image inputs, [] (Rudin et al. 1992)."""
    total = torch.zeros((), dtype=torch.float64)
    for name, shape in observed.shapes.items():
        if len(shape) == 3:
            image = inputs[name]
            total = total + (image[..., 1:, :] - image[..., :-1, :]).abs().mean()
            total = total + (image[..., 1:] - image[..., :-1]).abs().mean()
    return total


def _slopes(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate; a slope that is no number moves nothing."""
    slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return tuple(slope.nan_to_num(0.0, 0.0, 0.0) for slope in slopes)


def clamp(observed: Observed, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put pixels that lie outside of their box on its edge; NaN on its lower one."""
    clamped = {name: values.detach() for name, values in inputs.items()}
    for name, (low, high) in observed.box.items():
        low, high = low.reshape(1, -1, 1, 1), high.reshape(1, -1, 1, 1)
        values = torch.where(clamped[name].isnan(), low, clamped[name])
        clamped[name] = torch.minimum(torch.maximum(values, low), high)
    return clamped


@torch.no_grad()
def _stay_inside(observed: Observed, guess: Guess) -> None:
    for name, values in clamp(observed, guess.inputs).items():
        guess.inputs[name].copy_(values)


@torch.no_grad()
def _put(guess: Guess, values: list[Tensor]) -> None:
    for leaf, value in zip(guess.learned, values, strict=True):
        leaf.copy_(value)
