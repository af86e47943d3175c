"""Preferences: how much each task matters to whoever asks for a point of the Pareto front."""

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from common.experiment import Experiment

Preference = Annotated[
    tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None,
    Field(
        strict=False,
        description="How much each task matters, in their order; only ratios count.",
    ),
]


def preference_problems(
    preference: tuple[float, ...] | None, experiment: Experiment
) -> Iterator[str]:
    """Say what is wrong with a preference."""
    if preference is None:
        return
    if len(preference) != len(experiment.tasks):
        yield (
            f"loss.options.preference must have one number per task ({len(experiment.tasks)}: "
            f"{', '.join(experiment.tasks)}), got {len(preference)}"
        )
    elif not any(preference):
        yield "loss.options.preference must have a number above 0, got none; give a task one"


def read_preference(preference: tuple[float, ...] | None, tasks: int) -> Tensor:
    """Turn a preference into [T] with mean 1."""
    values = torch.tensor(preference or (1.0,) * tasks)
    return values / values.mean()
