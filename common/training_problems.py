"""What ``[training]`` cannot be asked for, a line each: what it must be, what it was, a way out."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.algorithms import ALGORITHMS
from common.architectures.table import SHARINGS

if TYPE_CHECKING:
    from common.experiment import Experiment


def training_problems(experiment: "Experiment") -> Iterator[str]:
    """Name what is impossible, or would change nothing."""
    training, trunk = experiment.training, experiment.trunk
    yield from _micro_batch_problems(experiment)
    yield from _patience_problems(experiment)
    if training.precision != "float32" and not trunk.has_layers:
        yield (
            "training.precision must be 'float32' for a trunk without layers, of whose products it "
            f"speaks, got '{training.precision}'; give the trunk a layer, or remove it"
        )
    if training.recompute_activations and not trunk.has_layers:
        yield (
            "training.recompute-activations must be false for a trunk without layers, which gives "
            "nothing to forget, got true; give the trunk a layer, or remove it"
        )
    if training.recompute_activations and training.compile:
        yield (
            "training.recompute-activations must be false under training.compile, whose compiler "
            "decides itself what it computes twice, got true; remove one of the two"
        )


def _micro_batch_problems(experiment: "Experiment") -> Iterator[str]:
    training, trunk = experiment.training, experiment.trunk
    size = training.micro_batch
    if size is None:
        return
    if size >= training.batch_size:
        yield (
            f"training.micro-batch must be below training.batch-size, {training.batch_size}, for "
            f"else no batch is divided, got {size}; lower it, or remove it"
        )
    if trunk.norm == "batch":
        yield (
            "training.micro-batch must be left out under trunk.norm 'batch', which normalises by "
            f"the rows of a whole batch, got {size}; set trunk.norm to 'group' or 'layer', or "
            "remove it"
        )
    if SHARINGS[trunk.sharing].compares_rows:
        yield (
            f"training.micro-batch must be left out under trunk.sharing '{trunk.sharing}', whose "
            f"penalty compares all rows of a batch, got {size}; choose another trunk.sharing, or "
            "remove it"
        )


def _patience_problems(experiment: "Experiment") -> Iterator[str]:
    training, data = experiment.training, experiment.data
    patience, algorithm = training.patience, experiment.federation.algorithm
    if patience is None:
        return
    if not data.validation and data.split != "column":
        yield (
            f"training.patience needs validation rows, got {patience} with data.validation = 0; "
            "set data.validation above 0, or remove patience"
        )
    if training.epochs == 1 and not ALGORITHMS[algorithm].more_epochs:
        yield (
            f"training.patience needs training.epochs above 1, got {patience} with 1 epoch, after "
            "which there is nothing to stop; raise epochs, or remove patience"
        )
    if algorithm == "scaffold":
        yield (
            "training.patience must be left out under federation.algorithm 'scaffold', whose "
            f"control variates are means over all steps of a round, got {patience}; remove it"
        )
