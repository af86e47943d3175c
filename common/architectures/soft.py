"""Soft parameter sharing: a trunk per task, and a penalty that draws them together.

Duong, Cohn, Bird & Cook, "Low resource dependency parsing: cross-lingual parameter sharing in a
neural network parser", ACL 2015 (squared distances); Yang & Hospedales, "Trace norm regularised
deep multi-task learning", ICLR workshop 2017 (trace norm).
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from common.architectures.trunk import SharedTrunk
from common.encoder import Encoder, InputShapes, build_encoder
from common.experiment import Experiment
from common.settings import Finite, Settings

NOISE = 1e-6  # singular values below this share of the largest are rounding, and have no direction


class SoftSharing(SharedTrunk):
    """One encoder per task; with W_t the parameters of task t's, the loss gains a penalty.

    - ``l2``: ``strength * sum over pairs t < u of ||W_t - W_u||^2``, over all their parameters.
    - ``trace-norm``: ``strength * sum over parameters of ||M||_*``, the sum of the singular values
      of the matrix whose row t is task t's copy of one parameter, flattened: the paper's last-axis
      flattening. It favours copies that are mixtures of few.

    In a federation every encoder belongs to its task and travels. The server averages it over the
    clients that hold the task. At a client that lacks a task, the task's encoder stays as it was
    received, and draws the others towards what the task's holders made of it.
    """

    class Options(Settings):
        """Options of sharing ``soft``."""

        penalty: Literal["l2", "trace-norm"] = Field(
            "l2",
            description="l2: squared distances between the tasks' trunks; trace-norm: the nuclear "
            "norm of the tasks' copies of each parameter, stacked.",
        )
        strength: Finite = Field(
            0.0001, ge=0, description="The penalty's weight; 0 lets every task train alone."
        )

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        self.encoders = self.for_each_task(
            "encoder", lambda: build_encoder(experiment.trunk, shapes)
        )
        self.width = cast(Encoder, self.encoders[f"task-{self.tasks[0]}"]).width

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width], each by its encoder."""
        return {task: self.encoders[f"task-{task}"](inputs) for task in tasks}

    def penalty(
        self, features: Mapping[str, Tensor], labelled: Mapping[str, Tensor]
    ) -> Tensor | None:
        """Compute the penalty on the differences between all tasks' encoders, []."""
        if not self.options.strength:
            return None
        copies = [list(encoder.parameters()) for encoder in self.encoders.values()]
        if self.options.penalty == "l2":
            total = squared_distances(torch.stack([parameters_to_vector(c) for c in copies]))
        else:
            alike = (torch.stack([c.flatten() for c in row]) for row in zip(*copies, strict=True))
            total = functools.reduce(torch.add, map(trace_norm, alike))
        return total * cast(float, self.options.strength)


def squared_distances(rows: Tensor) -> Tensor:
    """Sum the squared distances between all pairs of rows, [T, P] -> [].

    >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]))
    tensor(50.)
    """
    pairs = itertools.combinations(rows, 2)
    total: Tensor = functools.reduce(torch.add, ((a - b).square().sum() for a, b in pairs))
    return total


def trace_norm(rows: Tensor) -> Tensor:
    """Sum the singular values of a matrix, [T, P] -> [].

    Those that are 0 but for rounding are left out: a subgradient there may be 0, and the one that
    autograd gives has an arbitrary direction.

    >>> trace_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    tensor(7.)
    """
    values: Tensor = torch.linalg.svdvals(rows)
    return values[values > NOISE * values[0].detach()].sum()
