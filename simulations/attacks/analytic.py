"""The strongest simple attack: rows straight from the update of a fully connected first layer.

For ``a = W x + b`` every row contributes ``dL/dW_i = dL/da_i x`` and ``dL/db_i = dL/da_i``: the
update of a unit's weights, divided by that of its bias, is the row itself where one row alone moved
the unit, whatever the heads, the loss and the number of steps of plain SGD (Phong et al.,
"Privacy-preserving deep learning via additively homomorphic encryption", 2018, section 3). Where
several rows moved it, it is a weighted mean of them.
"""

import math

import torch
from torch import Tensor

from common.errors import ConfigError
from simulations.attacks.observed import Observed

SLACK = 1e-3  # how far outside of the box of pixels a row may lie, in widths of the box


def recover(observed: Observed) -> dict[str, Tensor]:
    """Read rows off the update.

    Of one row, the least-squares answer over all units. Of several, the quotients of the units that
    can be rows, for they lie within the box of pixels: those with the largest bias updates first,
    each unlike those before it; where there are fewer, the rest is their mean.

    Returns:
        Input name -> float64 [M, ...].

    Raises:
        ConfigError: the trunk has no fully connected first layer with a bias.
    """
    weight, bias = first_layer(observed)
    if observed.rows == 1:
        rows = (bias @ weight / bias.square().sum().clamp(min=1e-300)).unsqueeze(0)
    else:
        rows = _pick(observed, weight, bias)
    return _divide(observed, rows)


def first_layer(observed: Observed) -> tuple[Tensor, Tensor]:
    """Find the updates of a first layer that reads all inputs: weights [H, D] and biases [H]."""
    width = sum(math.prod(shape) for shape in observed.shapes.values())
    trunk = observed.experiment.trunk
    has_images = any(len(s) == 3 for s in observed.shapes.values())
    reads_all = trunk.architecture == "mlp" or not (has_images or trunk.is_ready)
    for name, update in observed.update.items():
        bias = observed.update.get(name.removesuffix("weight") + "bias")
        is_first = name.endswith(".layers.0.weight") and update.shape[1:] == (width,)
        if reads_all and is_first and bias is not None:
            return update, bias
    raise ConfigError(
        "--method analytic needs a fully connected first layer with a bias, which sees the rows "
        f"themselves; this trunk ({trunk.architecture}, norm '{trunk.norm}') sends none; take "
        "--method cosine"
    )


def _pick(observed: Observed, weight: Tensor, bias: Tensor) -> Tensor:
    """Choose M rows [M, D] among the units' quotients."""
    moved = bias.abs() > 1e-9 * bias.abs().max()
    order = bias.abs().argsort(descending=True)
    quotients = [weight[unit] / bias[unit] for unit in order.tolist() if bool(moved[unit])]
    inside = [row for row in quotients if is_possible(observed, row)] or quotients
    chosen: list[Tensor] = []
    for row in inside:
        apart = all((row - c).norm() > 0.05 * (1e-12 + c.norm()) for c in chosen)
        if apart and len(chosen) < observed.rows:
            chosen.append(row)
    if not chosen:  # nothing moved
        return torch.zeros(observed.rows, weight.shape[1], dtype=weight.dtype)
    rest = torch.stack(chosen).mean(0).expand(observed.rows - len(chosen), -1)
    return torch.cat([torch.stack(chosen), rest])


def is_possible(observed: Observed, row: Tensor) -> bool:
    """Whether a row [D] has pixels within their box."""
    inputs = _divide(observed, row.unsqueeze(0))
    for name, (low, high) in observed.box.items():
        low, high = low.reshape(1, -1, 1, 1), high.reshape(1, -1, 1, 1)
        slack = SLACK * (high - low)
        if ((inputs[name] < low - slack) | (inputs[name] > high + slack)).any():
            return False
    return True


def _divide(observed: Observed, rows: Tensor) -> dict[str, Tensor]:
    widths = [math.prod(shape) for shape in observed.shapes.values()]
    parts = torch.split(rows, widths, dim=1)
    named = zip(observed.shapes.items(), parts, strict=True)
    return {name: part.reshape(len(rows), *shape) for (name, shape), part in named}
