"""What is wrong with how a trunk starts and what of it trains, before anything is built."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from common.experiment import Experiment


def pretrained_problems(experiment: "Experiment") -> Iterator[str]:
    """Say what does not go together, a line each."""
    trunk = experiment.trunk
    if trunk.weights_digest and trunk.weights is None:
        yield (
            f"trunk.weights-digest is of trunk.weights, got '{trunk.weights_digest}' without it; "
            "name the weights, or remove it"
        )
    if trunk.trains == ():
        yield "trunk.trains must name a pattern, got []; write 'none', or remove it"
    if trunk.trains == "all" and trunk.adapters is not None:
        yield (
            "trunk.trains must not be 'all' with [trunk.adapters]: adapters stand for weights that "
            "are frozen; remove one of the two, or name what trains beside them"
        )
    for name in ("weights", "trains", "adapters"):
        if getattr(trunk, name) is not None and not trunk.has_layers:
            yield f"trunk.{name} needs a trunk with layers, got trunk.widths = []; remove it"
    drops = trunk.adapters is not None and trunk.adapters.dropout
    if drops and trunk.is_ready and experiment.training.recompute_activations:
        yield (
            "trunk.adapters.dropout must be 0 with training.recompute-activations and "
            f"trunk.architecture '{trunk.architecture}', whose library would draw other masks the "
            f"second time, got {drops:g}; remove one of the two"
        )
