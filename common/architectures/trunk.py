"""What every sharing architecture is: a module from inputs to features, task by task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.encoder import InputShapes
from common.experiment import Experiment
from common.seeding import derive_key
from common.settings import Settings


class SharedTrunk(nn.Module):
    """Base of the sharing architectures: each a class in its own file, and a line in `SHARINGS`.

    Its parameters' names say whose they are (`common.sharing`): one with ``task-NAME`` in its path
    belongs to that task, any other to all tasks. A task's own parameters take a step only with a
    batch that has labels of the task; they travel or stay home, as ``trunk.task-parts`` says.

    Args:
        experiment: its ``trunk`` table and tasks.
        shapes: input name -> shape of one row.

    Attributes:
        width: number of features that a head reads.
        tasks: names of all tasks of the experiment, sorted, so that their order in a file shows
            nowhere.
        options: what ``trunk.options`` holds.
    """

    class Options(Settings):
        """What ``trunk.options`` may hold; nothing here."""

    width: int

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__()
        self.tasks, self.seed = sorted(experiment.tasks), experiment.seed
        self.options: Any = self.Options.model_validate(experiment.trunk.options)

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each: here a trunk without layers.

        Args:
            options: an instance of `Options`.
            experiment: the experiment.
        """
        trunk = experiment.trunk
        if not trunk.has_layers:
            yield (
                f"trunk.widths must not be empty under trunk.sharing '{trunk.sharing}': without "
                "layers there is nothing to share; give the trunk a layer"
            )

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width].

        Args:
            inputs: input name -> [N, ...].
            tasks: those of the experiment's tasks that are asked for: a client asks for those that
                it holds.
        """
        raise NotImplementedError

    def penalty(
        self, features: Mapping[str, Tensor], labelled: Mapping[str, Tensor]
    ) -> Tensor | None:
        """Compute what training adds to the weighted loss, []; here nothing.

        Args:
            features: what `forward` returned for the same batch.
            labelled: task name -> bool [N], which rows have a label.
        """
        return None

    def for_each_task(self, what: str, make: Callable[[], nn.Module]) -> nn.ModuleDict:
        """Make a module of every task's own, initialised from a random stream of its own.

        So another task more, or another order of tasks, changes nothing for a task.

        Args:
            what: names the streams.
            make: makes one.

        Returns:
            ``task-NAME`` -> module.
        """
        modules = nn.ModuleDict()
        for task in self.tasks:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_key(self.seed, "init", "trunk", what, task))
                modules[f"task-{task}"] = make()
        return modules
