"""Cross-stitch networks: a trunk per task; after every stage each reads a mixture of all.

Misra, Shrivastava, Gupta & Hebert, "Cross-stitch networks for multi-task learning", CVPR 2016.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from common.architectures.trunk import SharedTrunk
from common.encoder import Encoder, InputShapes, State, build_encoder
from common.experiment import Experiment
from common.settings import Finite, Settings


class CrossStitch(SharedTrunk):
    """One encoder per task, tied after every stage by a cross-stitch unit (eq. 1).

    With x_u what task u's stage gave, task t's next stage reads ``sum over u of a_tu * x_u``. The
    weights a_tu, one for a whole layer or one for each of its channels, are learned. At first
    ``a_tt = own`` and the others share ``others`` evenly.

    In a federation a task's encoder and its row of weights a_t belong to the task and travel. The
    server averages them over the clients that hold the task. A client that lacks a task still
    computes its encoder, as it was received: the others read from it.
    """

    class Options(Settings):
        """Options of sharing ``cross-stitch``."""

        units: Literal["layer", "channel"] = Field(
            "layer",
            description="layer: one weight per pair of tasks and stage; channel: for each "
            "channel of an image and each feature.",
        )
        own: Finite = Field(0.9, description="First weight of a task's own encoder.")
        others: Finite = Field(
            0.1, description="First weight of the other tasks' encoders together, shared evenly."
        )

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        self.encoders = self.for_each_task(
            "encoder", lambda: build_encoder(experiment.trunk, shapes)
        )
        first = self._encoder(self.tasks[0])
        self.width = first.width
        self.units = nn.ModuleDict(
            {
                f"task-{task}": nn.ModuleList(
                    nn.ParameterList(self._first_weights(task, shape) for shape in stage)
                    for stage in first.stage_shapes
                )
                for task in self.tasks
            }
        )

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width]."""
        states: dict[str, State] = dict.fromkeys(self.tasks, ())
        encoders = {task: self._encoder(task) for task in self.tasks}
        last = len(encoders[self.tasks[0]].stage_shapes) - 1
        for stage in range(last + 1):
            given = [encoders[t].run_stage(stage, states[t], inputs) for t in self.tasks]
            stacked = [torch.stack(alike) for alike in zip(*given, strict=True)]  # [T, N, ...]
            readers = tasks if stage == last else self.tasks
            states = {task: self._stitch(task, stage, stacked) for task in readers}
        return {task: encoders[task].finish(states[task], inputs) for task in tasks}

    def _encoder(self, task: str) -> Encoder:
        return cast(Encoder, self.encoders[f"task-{task}"])

    def _first_weights(self, task: str, shape: Sequence[int]) -> Tensor:
        """Weights of the tasks' outputs in what a task reads: [T, 1 or channels, 1, ...]."""
        share = self.options.others / (len(self.tasks) - 1)
        values = [self.options.own if other == task else share for other in self.tasks]
        channels = shape[0] if self.options.units == "channel" else 1
        weights = torch.tensor(values).view(-1, 1, *(1 for _ in shape))  # [T, 1, 1, ...]
        return weights.repeat(1, 1, channels, *(1 for _ in shape[1:]))

    def _stitch(self, task: str, stage: int, stacked: Sequence[Tensor]) -> State:
        """Mix what all tasks' stages gave into what one task reads."""
        units = cast(nn.ModuleList, self.units[f"task-{task}"])[stage]
        weights = cast(Sequence[Tensor], units)
        return tuple((w * x).sum(0) for w, x in zip(weights, stacked, strict=True))
