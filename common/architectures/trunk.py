"""What every sharing architecture is: a module from inputs to features, task by task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from common.encoder import InputShapes
from common.experiment import Experiment, Settings


class SharedTrunk(nn.Module):
    """Base of the sharing architectures: each a class in its own file, and a line in `SHARINGS`.

    Its parameters' names say whose they are (`common.sharing`): one with ``task-NAME`` in its path
    belongs to that task, any other to all tasks.

    Args:
        experiment: its ``trunk`` table and tasks.
        shapes: input name -> shape of one row.

    Attributes:
        width: number of features that a head reads.
    """

    class Options(Settings):
        """What ``trunk.options`` may hold; nothing here."""

    width: int

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__()

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each; here nothing."""
        yield from ()

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width]."""
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
