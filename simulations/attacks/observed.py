"""What an attacker has in hand: a trunk that was sent, the update, and the experiment."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.agreement import input_shapes
from common.encoder import InputShapes
from common.errors import ConfigError
from common.experiment import Experiment
from common.schedules.rates import rate_of_round, step_schedule
from common.sharing import is_statistic
from simulations.attacks.wire import EVERYBODY, Wire


@dataclass(frozen=True)
class Observed:
    """One update on the wire.

    Attributes:
        experiment: of the run; the server knows it.
        shapes: input name -> shape of one row.
        client: whose update; `EVERYBODY` for a round's mean.
        number: the round.
        tasks: those that the client is taken to train.
        weights: task name -> w_t of the round.
        received: shared parameters that were sent, float64.
        update: the same names -> what came back minus that.
        rows: how many training rows it is from.
        steps: local optimiser steps, as far as the rows tell.
        box: image inputs -> (lowest, highest) encoded value of a channel, [channels] each.
    """

    experiment: Experiment
    shapes: InputShapes
    client: str
    number: int
    tasks: tuple[str, ...]
    weights: Mapping[str, float]
    received: Mapping[str, Tensor]
    update: Mapping[str, Tensor]
    rows: int
    steps: int
    box: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def is_clipped(self) -> bool:
        """Whether the update's length may not be the gradient's."""
        clips_steps = self.experiment.training.clip_norm is not None
        return clips_steps or self.experiment.privacy.update_norm is not None

    @property
    def rates(self) -> list[float]:
        """The learning rate of each local step, as far as the rows tell."""
        training = self.experiment.training
        rate, schedule = rate_of_round(self.experiment, self.number), step_schedule(training)
        if schedule is None:
            return [rate] * self.steps
        return [rate * schedule.factor(step, self.steps) for step in range(self.steps)]

    @property
    def gradient(self) -> dict[str, Tensor]:
        """The update as a mean gradient of plain SGD: ``-u / (lr * steps)``."""
        scale = -1.0 / sum(self.rates)
        return {name: update * scale for name, update in self.update.items()}


def observe(wire: Wire, number: int, client: str, rows: int | None = None) -> Observed:
    """Read one update off the wire.

    Args:
        wire: of the run.
        number: the round.
        client: a name, or `EVERYBODY`.
        rows: how many training rows to look for; by default as many as the wire tells.

    Raises:
        ConfigError: there is no such update, or the wire does not tell its rows.
    """
    update, sent = wire.update(number, client), wire.sent(number, client)
    told = wire.rows_of(number, client)
    count = rows or told
    if count is None:
        raise ConfigError("the wire does not tell how many rows to look for; give --rows N")
    moved = [name for name in sent if not is_statistic(name)]
    if not moved:
        raise ConfigError(
            f"federation.algorithm '{wire.experiment.federation.algorithm}' sends no parameters: "
            "there is no update to attack"
        )
    config, training = wire.config(number), wire.experiment.training
    weights = dict(zip(config["weight-tasks"], config["weights"], strict=True))
    answered = len(wire.clients(number)) if client == EVERYBODY else 1
    batches = -(-max(1, round((told or count) / answered)) // training.batch_size)
    return Observed(
        experiment=wire.experiment,
        shapes=input_shapes(wire.agreement),
        client=client,
        number=number,
        tasks=wire.tasks_of(client),
        weights={task: weights.get(task, 1.0) for task in wire.experiment.tasks},
        received={n: torch.tensor(np.asarray(a), dtype=torch.float64) for n, a in sent.items()},
        update={name: torch.tensor(update[name], dtype=torch.float64) for name in moved},
        rows=count,
        steps=training.epochs * batches,
        box=boxes_of(wire),
    )


def boxes_of(wire: Wire) -> dict[str, tuple[Tensor, Tensor]]:
    """Say between which encoded values the pixels of image inputs lie, 0 and `scale` raw.

    Inputs without a scale, or that each client standardises by itself, are left out.
    """
    boxes = {}
    for name, settings in wire.experiment.inputs.items():
        if settings.kind != "image" or settings.scale == 1 or settings.standardise == "client":
            continue
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None].repeat(1, settings.shape[0])
        if settings.standardise == "federation":
            scaling = wire.agreement.scalings[name].scaling()
            mean, deviation = map(torch.from_numpy, (scaling.mean, scaling.deviation))
            ends = (ends - mean) / deviation
        boxes[name] = (ends[0], ends[1])
    return boxes
