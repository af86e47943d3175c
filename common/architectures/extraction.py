"""Customised gate control and progressive layered extraction: experts of all and of each task.

Tang, Liu, Zhao & Gong, "Progressive layered extraction (PLE): a novel multi-task learning model for
personalized recommendations", RecSys 2020.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import Field
from torch import Tensor, cat, nn

from common.architectures.experts import Gate, mix
from common.architectures.trunk import SharedTrunk
from common.encoder import Encoder, InputShapes, build_encoder
from common.experiment import Experiment
from common.sections.model import Trunk
from common.settings import Settings
from common.sharing import task_parts_travel

Inputs = Mapping[str, Tensor]  # input name -> [N, ...]
FEATURES = "features"  # the only input of a level above the first


class Level(nn.Module):
    """Experts of all tasks and of each, and gates that mix them by ``softmax(W x)``.

    Task t's gate mixes t's experts with those of all tasks; the shared gate, in every level but the
    last, mixes all there are. Its weights for a task's experts belong to the task, as those do.

    Args:
        trunk: the architecture that the level is part of.
        number: which of its levels, from 0.
        settings: layers of an expert.
        shapes: what it reads: input name -> shape of one row.
        is_last: leave out the shared gate, which nothing would read.

    Attributes:
        width: number of features that a gate mixes.
    """

    def __init__(
        self,
        trunk: SharedTrunk,
        number: int,
        settings: Trunk,
        shapes: InputShapes,
        *,
        is_last: bool,
    ) -> None:
        super().__init__()
        shared, own = trunk.options.shared_experts, trunk.options.task_experts

        def experts(count: int) -> nn.ModuleList:
            return nn.ModuleList(build_encoder(settings, shapes) for _ in range(count))

        def gates(what: str, count: int) -> nn.ModuleDict:
            return trunk.for_each_task(f"{what} {number}", lambda: Gate(shapes, count))

        self.shared = experts(shared)
        self.own = trunk.for_each_task(f"experts {number}", lambda: experts(own))
        self.gates = gates("gate", own + shared)
        self.width = cast(Encoder, self.shared[0]).width
        self.is_last = is_last
        if not is_last:
            self.shared_gate = Gate(shapes, shared)
            self.shared_gate_own = gates("shared gate", own)

    def forward(
        self, shared: Inputs, inputs: Mapping[str, Inputs]
    ) -> tuple[Inputs, Mapping[str, Inputs]]:
        """Mix what the experts make of the level below.

        Args:
            shared: what the shared experts and the shared gate read.
            inputs: task -> what its experts and its gate read.

        Returns:
            What the level above reads, likewise, [N, width] each: for all tasks what the shared
            gate makes of the shared and these tasks' experts; for a task what its gate makes of the
            shared and its own ones. The last level has nothing for all tasks.
        """
        common = [expert(shared) for expert in self.shared]
        own = {
            task: [expert(read) for expert in cast(nn.ModuleList, self.own[f"task-{task}"])]
            for task, read in inputs.items()
        }
        mixed = {
            task: {FEATURES: mix([*own[task], *common], self.gates[f"task-{task}"](read))}
            for task, read in inputs.items()
        }
        if self.is_last:
            return {}, mixed
        logits = [self.shared_gate(shared)]
        logits += [self.shared_gate_own[f"task-{task}"](shared) for task in own]
        everything = [*common, *(output for outputs in own.values() for output in outputs)]
        return {FEATURES: mix(everything, cat(logits, dim=1))}, mixed


class Extraction(SharedTrunk):
    """Levels of experts and gates; the gates of a level read what its tasks' gates below mixed.

    Attributes:
        mixes_all: shared gates mix the experts of all tasks, not only of those asked for.
    """

    class Options(Settings):
        """Options of sharing ``cgc`` and ``ple``."""

        shared_experts: int = Field(2, ge=1, description="Experts of all tasks, in every level.")
        task_experts: int = Field(1, ge=1, description="Experts of each task, in every level.")

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        settings = self.levels_of(experiment.trunk)
        self.levels = nn.ModuleList()
        for number, layers in enumerate(settings):
            is_last = number == len(settings) - 1
            level = Level(self, number, layers, shapes, is_last=is_last)
            self.levels.append(level)
            self.width = level.width
            shapes = {FEATURES: (level.width,)}
        self.mixes_all = task_parts_travel(experiment)

    @classmethod
    def levels_of(cls, trunk: Trunk) -> list[Trunk]:
        """Say what layers the experts of each level have."""
        raise NotImplementedError

    def forward(self, inputs: Inputs, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width]."""
        below: Inputs = inputs
        own: Mapping[str, Inputs] = dict.fromkeys(
            self.tasks if self.mixes_all else sorted(tasks), inputs
        )
        for level in self.levels:
            if level.is_last:
                own = {task: own[task] for task in tasks}
            below, own = level(below, own)
        return {task: features[FEATURES] for task, features in own.items()}


class CustomisedGateControl(Extraction):
    """CGC: one level, whose experts are whole trunks (eqs. 1 to 4).

    Task t reads ``softmax(W_t x) S_t(x)`` with S_t(x) the outputs of the experts of task t and of
    those of all tasks, and x the inputs as they are, flattened.

    In a federation the shared experts travel. A task's experts and its gate belong to the task, and
    stay home unless told otherwise.
    """

    @classmethod
    def levels_of(cls, trunk: Trunk) -> list[Trunk]:
        """Leave the trunk's layers together."""
        return [trunk]


class ProgressiveExtraction(Extraction):
    """PLE: a level for every fully connected layer; the first has the convolutions too (eqs. 5, 6).

    In the first level experts and gates read the inputs as they are. Above, a task's experts and
    gate read what its gate below mixed, the shared ones what the shared gate below mixed.

    In a federation the shared experts, and the shared gates' weights for them, travel. A task's
    experts, its gates, and the shared gates' weights for its experts belong to the task, and stay
    home unless told otherwise. Then a client's shared gates mix the shared experts and those of the
    tasks that it holds: others it would only have as they were at first.
    """

    @classmethod
    def levels_of(cls, trunk: Trunk) -> list[Trunk]:
        """Give every fully connected layer a level of its own."""
        first, *rest = trunk.widths
        above = trunk.model_copy(update={"architecture": "mlp"})
        levels = [trunk.model_copy(update={"widths": (first,)})]
        return levels + [above.model_copy(update={"widths": (width,)}) for width in rest]

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say that fully connected layers are missing, which are its levels."""
        if not experiment.trunk.widths:
            yield (
                "trunk.widths must not be empty under trunk.sharing 'ple', whose levels they are; "
                "give the trunk a layer, or set trunk.sharing to 'cgc'"
            )
