"""Rows of an audit: unlike all others of one client, each in by the toss of a coin.

A canary's inputs are random numbers, some deviations wide, and its labels are random: what a model
learns of it, it learns from that row alone.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from common.agreement import Agreement, Description
from common.dataset import ClientData, Rows
from common.experiment import Experiment
from common.preparation import PreparedClient
from common.seeding import numpy_generator, torch_generator
from simulations.attacks.other_rows import PreparedRows

SPREAD = 3.0  # deviations of the client's own rows that inputs of canaries are wide
FAR = 3.0  # of a regression's target: so far from the middle, on either side


class CanaryRows(PreparedRows):
    """All clients' rows, with canaries among those of one.

    Args:
        experiment: of the run.
        prepared: client -> its rows.
        client: whose rows canaries are put among.
        count: of canaries.

    Attributes:
        client: as given.
        included: bool [m], by fair coins.
        canaries: the rows, in or not, once the client's rows were encoded.
        others: the client's own training rows, likewise.
        agreement: of the run, likewise.
    """

    def __init__(
        self,
        experiment: Experiment,
        prepared: Mapping[str, PreparedClient],
        client: str,
        count: int,
    ) -> None:
        super().__init__(experiment, prepared)
        self.client = client
        self.included = numpy_generator(experiment.seed, "audit", "coins").random(count) < 0.5
        self.canaries: Rows | None = None
        self.others: Rows | None = None
        self.agreement: Agreement | None = None

    def describe(self, name: str) -> Description:
        """Describe a client; canaries that are in count as rows with every label."""
        description = super().describe(name)
        if name != self.client:
            return description
        more = int(self.included.sum())
        examples = description.examples | {"train": description.examples["train"] + more}
        labelled = {task: count + more for task, count in description.labelled.items()}
        return description.model_copy(update={"examples": examples, "labelled": labelled})

    def encode(self, name: str, agreement: Agreement) -> ClientData:
        """Encode a client's rows, and put canaries behind them."""
        data = super().encode(name, agreement)
        if name != self.client:
            return data
        self.agreement, self.others = agreement, data.train
        self.canaries = draw_canaries(data.train, self.experiment, len(self.included))
        chosen = self.canaries.select(torch.from_numpy(np.flatnonzero(self.included)))
        return replace(data, splits={**data.splits, "train": Rows.join([data.train, chosen])})


def draw_canaries(train: Rows, experiment: Experiment, count: int) -> Rows:
    """Draw canaries for a client.

    Args:
        train: its own rows, whose spread and tasks canaries take.
        experiment: tells tasks' kinds, and the seed.
        count: m.
    """
    generator = torch_generator(experiment.seed, "audit", "canaries")
    inputs = {
        name: _draw_input(values, experiment.inputs[name].kind, count, generator)
        for name, values in train.inputs.items()
    }
    targets = {
        task: _draw_targets(values, experiment, task, count, generator)
        for task, values in train.targets.items()
    }
    labelled = {task: torch.ones(count, dtype=torch.bool) for task in targets}
    return Rows(inputs, targets, labelled)


def _draw_input(own: Tensor, kind: str, count: int, generator: torch.Generator) -> Tensor:
    """Draw one input of canaries, [count, ...]; of a text, tokens up to the last that rows have."""
    size = (count, *own.shape[1:])
    if kind == "text":
        return torch.randint(int(own.max()) + 1, size, generator=generator).to(own)
    spread = SPREAD * own.std().clamp(min=1e-3)
    return own.mean() + spread * torch.randn(size, generator=generator)


def _draw_targets(
    like: Tensor, experiment: Experiment, task: str, count: int, generator: torch.Generator
) -> Tensor:
    settings = experiment.tasks[task]
    if settings.kind == "multiclass":
        return torch.randint(0, settings.class_count or 1, (count,), generator=generator)
    coins = torch.randint(0, 2, (count, *like.shape[1:]), generator=generator).to(like.dtype)
    if settings.kind == "regression":
        return like.mean() + FAR * (2 * coins - 1) * like.std().clamp(min=1e-3)
    return coins
