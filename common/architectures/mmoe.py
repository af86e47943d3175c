"""Multi-gate mixture of experts: experts for all, and a gate per task that mixes them row by row.

Ma, Zhao, Yi, Chen, Hong & Chi, "Modeling task relationships in multi-task learning with multi-gate
mixture-of-experts", KDD 2018.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor, nn

from common.architectures.experts import Gate, mix
from common.architectures.trunk import SharedTrunk
from common.encoder import InputShapes, build_encoder
from common.experiment import Experiment
from common.settings import Settings


class MultiGateMixture(SharedTrunk):
    """Task t reads ``sum_i g_t(x)_i f_i(x)`` with ``g_t(x) = softmax(W_t x)``.

    The experts f_i are encoders; x are the inputs as they are, flattened.

    In a federation the experts belong to all tasks and travel. A gate belongs to its task and stays
    home, unless told otherwise: how a client's own rows use the common experts is its own.
    """

    class Options(Settings):
        """Options of sharing ``mmoe``."""

        experts: int = Field(4, ge=2, description="Number of experts, each a whole trunk.")

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        count = self.options.experts
        experts = [build_encoder(experiment.trunk, shapes) for _ in range(count)]
        self.width = experts[0].width
        self.experts = nn.ModuleList(experts)
        self.gates = self.for_each_task("gate", lambda: Gate(shapes, count))

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width]."""
        outputs = [expert(inputs) for expert in self.experts]
        return {task: mix(outputs, self.gates[f"task-{task}"](inputs)) for task in tasks}
