"""The geometric mean of the losses, which does not mind their units.

Chennupati et al., "MultiNet++: Multi-stream feature aggregation and geometric loss strategy for
multi-task learning", CVPR workshops 2019, eq. 3: ``L = (prod_t L_t)^(1/n)``.
"""

from torch import Tensor

from common.weighting.weighting import TINY, State, Weighting, count, mean


class GeometricMean(Weighting):
    """``w_t = dL/dL_t = L / (n L_t)``, n the number of present tasks."""

    def weigh(self, losses: Tensor, taught: Tensor, state: State, noise: Tensor | None) -> Tensor:
        """Differentiate the geometric mean."""
        above = losses.clamp(min=TINY)
        return mean(above.log(), taught).exp() / (count(taught) * above)
