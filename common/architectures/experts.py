"""Experts and gates: what the mixture architectures are made of."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn, stack

from common.encoder import InputShapes, side_by_side


class Gate(nn.Module):
    """Logits of experts from all inputs, flattened and side by side: ``W x``, without a bias.

    Args:
        shapes: input name -> shape of one row.
        experts: how many there are to choose from.
    """

    def __init__(self, shapes: InputShapes, experts: int) -> None:
        super().__init__()
        self.names = tuple(shapes)
        width = sum(math.prod(shape) for shape in shapes.values())
        self.layer = nn.Linear(width, experts, bias=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map input name -> [N, ...] to logits [N, experts]."""
        logits: Tensor = self.layer(side_by_side(inputs, self.names))
        return logits


def mix(outputs: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Average what experts gave, [N, W] each, by the softmax of their logits [N, E].

    >>> from torch import tensor
    >>> mix([tensor([[2.0, 0.0]]), tensor([[0.0, 4.0]])], tensor([[5.0, 5.0]]))
    tensor([[1., 2.]])
    """
    shares = logits.softmax(dim=1).unsqueeze(1)  # [N, 1, E]
    mixed: Tensor = (shares @ stack(tuple(outputs), dim=1)).squeeze(1)
    return mixed
