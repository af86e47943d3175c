"""How far the tasks' gradients pull the same way."""

import torch
from torch import Tensor


def mean_cosines(gradients: Tensor) -> Tensor:
    """Average each task's cosine with every other task's gradient.

    Two tasks conflict where their cosine is below 0 (Yu et al., "Gradient surgery for multi-task
    learning", NeurIPS 2020, def. 1).

    Args:
        gradients: [n, P], one of each task.

    Returns:
        [n]; NaN for a gradient of length 0, and where no other has a length.

    >>> mean_cosines(torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]))
    tensor([-0.5000,  0.0000, -0.5000])
    """
    lengths = gradients.norm(dim=1, keepdim=True)
    known = (lengths > 0).squeeze(1)
    # With S the sum of unit vectors, u_i S - 1 is the sum of the others' cosines. A matrix of
    # products would be in half precision under autocast.
    units = torch.where(lengths > 0, gradients / lengths, 0)
    sums = (units * units.sum(0)).sum(1) - 1
    others = known.sum() - 1
    return torch.where(known & (others > 0), sums / others, torch.nan)
