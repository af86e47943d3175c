"""Dynamic weight average: tasks that fell least last round count most.

Liu, Johns & Davison, "End-to-end multi-task learning with attention", CVPR 2019, eq. 7: with
``r_t = L_t(n-1) / L_t(n-2)``, ``w_t = T exp(r_t / temperature) / sum_i exp(r_i / temperature)``. An
epoch there is a round here. Under scope "global" the averages of the clients' mean losses, by
labelled rows, are the training losses of the round's clients; all clients go by the same rates r_t,
shared out among the tasks that a batch has.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from common.settings import Settings
from common.weighting.weighting import State, Weighting, count, softmax


class DynamicWeightAverage(Weighting):
    """Weights sum to the number of present tasks; 1 each until two rounds have been seen.

    It goes by losses as they are, whatever the scaling: a rate has no unit.
    """

    needs_positive: ClassVar[bool] = False

    class Options(Settings):
        """Options of dynamic weight average."""

        temperature: float = Field(
            2.0, ge=0.01, description="Large evens the weights out; 2 in the paper."
        )

    STATE: ClassVar = {"last": 0.0, "before": 0.0}  # mean losses; 0 where not seen yet

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Compare the last two rounds; a task not seen in both counts as standing still."""
        seen = (state["last"] > 0) & (state["before"] > 0)
        rates = torch.where(seen, state["last"] / state["before"], 1.0)
        shares = softmax(rates / self.options.temperature, taught)
        return count(taught) * shares

    def end_round(self, means: Tensor, taught: Tensor, state: State) -> dict[str, Tensor]:
        """Remember the round's losses."""
        return {"last": means, "before": state["last"]}
