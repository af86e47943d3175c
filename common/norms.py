"""Normalisation after a layer, fully connected [N, C] or convolutional [N, C, H, W].

Its parameters are called ``norm_...`` wherever a trunk uses it: by these names `common.sharing` may
keep them at home. Running statistics are parameters that are not trained: they are sent, averaged,
kept and checkpointed as any other, and no gradient, optimiser step or penalty reaches them. (The
mean of the clients' variances leaves out how far their means lie apart.)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from common.recomputing import is_again
from common.sections.model import Trunk

EPSILON = 1e-5
MOMENTUM = 0.1  # what a batch counts in the running statistics


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He, ECCV 2018): each row by itself, C features in groups.

    ``y = (x - mean) / sqrt(variance + epsilon) * weight + bias``, mean and (biased) variance over
    a group's features, and over all places of an image. With one group it is layer normalisation
    (Ba et al. 2016).
    """

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.norm_weight = nn.Parameter(torch.ones(features))
        self.norm_bias = nn.Parameter(torch.zeros(features))

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each row's groups, then scale and shift."""
        return torch.group_norm(features, self.groups, self.norm_weight, self.norm_bias, EPSILON)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy, ICML 2015), nn.BatchNorm's arithmetic.

    ``y = (x - mean) / sqrt(variance + epsilon) * weight + bias``, in training by mean and (biased)
    variance of each feature over the batch's rows, and over all places of an image. After each
    batch ``running <- (1 - momentum) * running + momentum * batch's``, with the unbiased variance;
    evaluation normalises by these. So does training where a batch holds one number of each feature,
    such as the last row of an epoch: it has no variance, and it leaves the running statistics be.
    So does all training where the norm is frozen. Two numbers become -1 and 1, or nearly: with so
    small batches, rounding alone decides a run.

    Attributes:
        is_frozen: it normalises in training as in evaluation.
    """

    is_frozen = False

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm_weight = nn.Parameter(torch.ones(features))
        self.norm_bias = nn.Parameter(torch.zeros(features))
        self.norm_mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.norm_variance = nn.Parameter(torch.ones(features), requires_grad=False)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise each feature, then scale and shift."""
        trains = self.training and not self.is_frozen
        if trains and features.numel() > features.shape[1]:
            return self._normalise(features, by_batch=True)
        return self._normalise(features, by_batch=False)

    def _normalise(self, features: Tensor, *, by_batch: bool) -> Tensor:
        running: tuple[Tensor, Tensor] = self.norm_mean, self.norm_variance
        if is_again():  # this batch has moved them already
            running = self.norm_mean.clone(), self.norm_variance.clone()
        return batch_norm(
            features,
            *running,
            self.norm_weight,
            self.norm_bias,
            by_batch,
            MOMENTUM,
            EPSILON,
        )


NORMS: dict[str, Callable[[int, Trunk], list[nn.Module]]] = {
    "none": lambda features, settings: [],
    "layer": lambda features, settings: [GroupNorm(features, 1)],
    "batch": lambda features, settings: [BatchNorm(features)],
    "group": lambda features, settings: [GroupNorm(features, settings.norm_groups)],
}


def needs_bias(settings: Trunk) -> bool:
    """Tell whether a layer before the norm needs a bias: from a batch, the mean takes it away."""
    return settings.norm != "batch"


def make_norm(features: int, settings: Trunk) -> list[nn.Module]:
    """Make what normalises a layer of so many features or channels; empty where nothing does."""
    return NORMS[settings.norm](features, settings)
