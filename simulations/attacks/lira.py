"""The likelihood-ratio attack: is a row's score likelier under models that saw it?

Carlini et al., "Membership inference attacks from first principles", IEEE S&P 2022. Shadow models,
some trained with a row and some without, give two distributions of the row's score; each is fitted
by a Gaussian. Here a row has a score per task, and the logarithms of the ratios are summed over the
tasks that it has a label for.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.errors import ConfigError

LEAST_SHADOWS = 4  # two with each row and two without, or no deviation can be fitted
OWN_VARIANCE = 64  # shadows from which each row has deviations of its own (section VI.C)
SMALLEST = 1e-6  # of a deviation

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def confidence_scores(kind: str, output: Tensor, target: Tensor) -> Tensor:
    """Score rows of one task so that a Gaussian fits them: high where the model is right.

    The paper's ``log(p / (1 - p))`` with p the confidence in the right answer, in a form that does
    not overflow; for a regression, the loss with its sign changed.

    Args:
        kind: of the task.
        output: [N, outputs], the model's.
        target: as `common.dataset.Rows.targets` has them, [N] or [N, outputs].

    Returns:
        float64 [N, S]: S = 1, or for multilabel the number of labels.

    >>> confidence_scores("binary", torch.tensor([[2.0]]), torch.tensor([0.0])).tolist()
    [[-2.0]]
    """
    output = output.double()
    if kind == "multiclass":
        right = output.gather(1, target[:, None])
        others = output.scatter(1, target[:, None], -torch.inf)
        return right - torch.logsumexp(others, 1, keepdim=True)
    if kind == "regression":
        return -nn.functional.mse_loss(output, target.double(), reduction="none").mean(
            1, keepdim=True
        )
    signs = 2 * target.double() - 1
    return output * signs.reshape(output.shape)


@dataclass(frozen=True)
class Shadows:
    """What K shadow models say about N rows.

    Attributes:
        scores: [K, N, S]; NaN where a row has no label, or a model no such head.
        included: [K, N], whether a model was trained with a row.
    """

    scores: FloatArray
    included: BoolArray


def likelihood_ratios(target: FloatArray, shadows: Shadows, *, online: bool = True) -> FloatArray:
    """Score rows by how likely it is that the attacked model was trained with them.

    Args:
        target: [N, S], scores by the attacked model; NaN where there is none.
        shadows: of shadow models.
        online: compare both distributions, ``log N(s | in) - log N(s | out)``. Offline needs no
            model that saw a row: ``log P(Z <= s)`` under the distribution without it.

    Returns:
        [N], summed over scores; 0 for a row that no shadow model says anything about.

    Raises:
        ConfigError: there are too few shadow models.
    """
    require_shadows(len(shadows.scores))
    without = _fit(shadows.scores, ~shadows.included)
    if online:
        ratios = _log_density(target, *_fit(shadows.scores, shadows.included))
        ratios -= _log_density(target, *without)
    else:
        from scipy.special import log_ndtr

        mean, deviation = without
        ratios = log_ndtr((target - mean) / deviation)
    summed: FloatArray = np.nan_to_num(ratios, nan=0.0).sum(1)
    return summed


def require_shadows(count: int) -> None:
    """Refuse so few shadow models that nothing can be fitted.

    Raises:
        ConfigError: names the option.
    """
    if count < LEAST_SHADOWS:
        raise ConfigError(
            f"--shadows must be at least {LEAST_SHADOWS}, for a deviation needs two models with "
            f"each row and two without, got {count}; raise it, or use --method threshold"
        )


def _fit(scores: FloatArray, taken: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Fit a Gaussian to each row's scores by some of the models.

    Args:
        scores: [K, N, S].
        taken: [K, N].

    Returns:
        Means [N, S] and deviations [N, S]. With few models a deviation is all rows' together, the
        root of the mean of their variances.
    """
    chosen = np.where(taken[:, :, None], scores, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that no model says anything about
        mean = np.nanmean(chosen, axis=0)
        variance = np.nanvar(chosen, axis=0, ddof=1)
        if len(scores) < OWN_VARIANCE:
            variance = np.broadcast_to(np.nanmean(variance, axis=0), mean.shape)
    return mean, np.sqrt(variance) + SMALLEST


def _log_density(values: FloatArray, mean: FloatArray, deviation: FloatArray) -> FloatArray:
    """Compute a Gaussian's log density but for a constant."""
    density: FloatArray = -(((values - mean) / deviation) ** 2) / 2 - np.log(deviation)
    return density
