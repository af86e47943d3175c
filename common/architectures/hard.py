"""Hard parameter sharing: one trunk, which every task reads as it is.

Caruana, "Multitask learning", Machine Learning 28, 1997.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from common.architectures.trunk import SharedTrunk
from common.encoder import InputShapes, build_encoder
from common.experiment import Experiment


class HardSharing(SharedTrunk):
    """One encoder for all tasks."""

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        self.encoder = build_encoder(experiment.trunk, shapes)
        self.width = self.encoder.width

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width], the same for all."""
        return dict.fromkeys(tasks, self.encoder(inputs))
