"""Rows to try an exported model on, and how far its numbers are from those of the model itself."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from client.exported_model import ExportedModel
from client.kept_model import KeptModel
from common.encoding import places_of
from common.text import PADDING

FEWEST_TOKENS = 2  # that any model knows; which ones a check takes does not matter
TOLERANCE = 1e-5  # of probabilities; of values, relative to the largest of a column

Inputs = dict[str, Tensor]  # input name -> [N, ...], as `client.exported_model` says
Outputs = Mapping[str, Tensor]  # output name -> [N] or [N, width]


def random_rows(
    kept: KeptModel, model: ExportedModel, rows: int, generator: torch.Generator
) -> Inputs:
    """Draw raw inputs like those that the model was trained on, gaps included."""
    drawn = {}
    for name, settings in kept.experiment.inputs.items():
        shape = (rows, *kept.agreement.shapes[name])
        if settings.kind == "categorical":
            columns = places_of(name, kept.experiment, kept.agreement)
            drawn[name] = torch.cat([_one_hot(rows, len(c), generator) for c in columns], 1)
        elif settings.kind == "text":
            drawn[name] = _tokens(shape, generator)
        elif settings.kind == "image":
            drawn[name] = torch.rand(shape, generator=generator) * settings.scale
        else:
            values = model.unscale(name, torch.randn(shape, generator=generator).double())
            if settings.missing in ("mean", "zero"):
                values[torch.rand(shape, generator=generator) < 0.1] = torch.nan
            drawn[name] = values
    return drawn


def largest_difference(expected: Outputs, found: Outputs) -> float:
    """Compare two models' outputs: values relative to the largest of their column.

    Classes differ by what the class that is missed has more of probability; so that one of two
    equally likely ones will do. Outputs of another name, shape or type are infinitely unlike.
    """
    if _layout(expected) != _layout(found):
        return math.inf
    differences = [0.0]
    for name, mine in expected.items():
        its, chance = found[name], expected.get(f"{name}.probability")
        largest = torch.ones(1)
        if chance is not None:
            mine, its = (_chance_of(classes, chance) for classes in (mine, its))
        elif not name.endswith(".probability"):
            largest = mine.abs().amax(dim=0).clamp(min=torch.finfo(mine.dtype).tiny)
        differences.append(float(((mine - its).abs() / largest).max()))
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _layout(outputs: Outputs) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (values.shape, values.dtype) for name, values in outputs.items()}


def join(batches: Iterable[Outputs]) -> Outputs:
    """Put the outputs of several batches together."""
    parts = list(batches)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _chance_of(classes: Tensor, probability: Tensor) -> Tensor:
    """Take the probability of the classes that were chosen."""
    if classes.shape == probability.shape:  # of two each
        return torch.where(classes > 0, probability, 1 - probability)
    return probability.gather(1, classes.unsqueeze(1))


def _tokens(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw texts of all lengths, int64 [N, 1, tokens]."""
    tokens = torch.randint(FEWEST_TOKENS, shape, generator=generator)
    lengths = torch.randint(1, shape[-1] + 1, (shape[0], 1, 1), generator=generator)
    return torch.where(torch.arange(shape[-1]) < lengths, tokens, PADDING)


def _one_hot(rows: int, places: int, generator: torch.Generator) -> Tensor:
    chosen = torch.randint(max(places, 1), (rows,), generator=generator)
    return (chosen[:, None] == torch.arange(places)).float()
