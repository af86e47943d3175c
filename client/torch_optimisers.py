"""Optimisers of torch.optim by name, for training by autograd, one client at a time."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from client.optimisers import GradientStore, Part
from common.methods import make_options
from common.optimisers.table import OPTIMISERS
from common.sections.training import Training

# Each moves every number by itself, so that it does not matter how parameters are laid out.
CLASSES = {
    "adadelta": "Adadelta",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "asgd": "ASGD",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rmsprop": "RMSprop",
    "rprop": "Rprop",
}


class TorchOptimiser(GradientStore):
    """Steps by a class of torch.optim, with the options that the experiment gives it.

    Weight decay and L1 are terms of the gradient, as everywhere but under AdamW.

    Args:
        values: [1, P], moved in place.
        settings: optimiser, its options, lr, clip_norm.
        gradients: [1, P], which autograd fills in.
        parts: all that may be asked to step.
    """

    def __init__(
        self, values: Tensor, settings: Training, gradients: Tensor, parts: Collection[Part]
    ) -> None:
        super().__init__(values, gradients)
        self.settings = settings
        # What steps is a parameter of torch's for each of a part's slices, with state of its own.
        self.own = {
            part.name: [values[0, place].detach() for place in part.places] for part in parts
        }
        everything = [view for views in self.own.values() for view in views]
        made = getattr(torch.optim, CLASSES[settings.optimiser])
        told = make_options(OPTIMISERS, settings.optimiser, settings.optimiser_options).model_dump()
        self.optimiser = made(everything, lr=settings.lr, **told) if everything else None

    def step(self, rows: int, parts: Sequence[Part]) -> None:
        """Move the parameters of these parts against their gradients; others keep their state."""
        rate = self.begin(rows, parts, self.settings)
        if self.optimiser is None:
            return
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        for part in parts:
            for place, view in zip(part.places, self.own[part.name], strict=True):
                view.grad = self.slope(rows, place, part.decay, part.l1)[0]
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
