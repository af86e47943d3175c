"""What a trunk that begins with a ready model needs of an experiment, and what it ignores."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from common.architectures.table import SHARINGS
from common.experiment_problems import show

if TYPE_CHECKING:
    from common.experiment import Experiment
    from common.sections.model import Trunk

READS = {"transformer": ("image", "text"), "timm": ("image",)}  # kinds of input that it can be over
SETTINGS = ("model", "model_digest", "pretrained", "pooling")


def reads_folder(trunk: "Trunk") -> bool:
    """Whether `trunk.model` is a folder, and not a name."""
    return trunk.is_ready and (trunk.architecture != "timm" or "/" in trunk.model)


def ready_model_problems(experiment: "Experiment") -> Iterator[str]:
    """Name every contradiction, a line each: what it must be, what it was, a way out."""
    trunk = experiment.trunk
    texts = [name for name, one in experiment.inputs.items() if one.kind == "text"]
    if trunk.architecture not in READS:
        yield from _idle(trunk)
        for name in texts:
            yield (
                f"trunk.architecture must be 'transformer' for inputs.{name} of kind 'text', got "
                f"'{trunk.architecture}'; set it and trunk.model, or make the input categorical"
            )
        return
    yield from _read_input(experiment)
    if not trunk.model:
        yield (
            f"trunk.model is missing: trunk.architecture '{trunk.architecture}' needs "
            + ("a folder" if trunk.architecture == "transformer" else "a folder, or timm's name")
            + " of the model to build"
        )
    if trunk.architecture == "timm" and trunk.pooling is not None:
        yield (
            f"trunk.pooling is for trunk.architecture 'transformer', got '{trunk.pooling}' with "
            "'timm', whose models pool themselves; remove it"
        )
    if trunk.architecture == "timm" and trunk.pretrained and not reads_folder(trunk):
        yield (
            f"trunk.pretrained must be false where trunk.model is a name, got '{trunk.model}': "
            "nothing is downloaded; set it to false, or name a folder with model.safetensors"
        )
    if texts and SHARINGS[trunk.sharing].gates_read_inputs:
        yield (
            f"trunk.sharing must not be '{trunk.sharing}' for inputs.{texts[0]} of kind 'text', "
            "whose gates would take the numbers of tokens for measurements; use another, such as "
            "'hard'"
        )
    if experiment.training.compile:
        yield (
            f"training.compile must be false with trunk.architecture '{trunk.architecture}', "
            "whose passes draw from states that a compiled one cannot set; remove it"
        )


def _read_input(experiment: "Experiment") -> Iterator[str]:
    """Check that there is one input for the model to read."""
    trunk, kinds = experiment.trunk, READS[experiment.trunk.architecture]
    found = [name for name, one in experiment.inputs.items() if one.kind in ("image", "text")]
    if len(found) != 1 or experiment.inputs[found[0]].kind not in kinds:
        yield (
            f"trunk.architecture '{trunk.architecture}' needs one input of kind "
            f"{' or '.join(map(repr, kinds))}, got "
            + (", ".join(f"inputs.{n} ({experiment.inputs[n].kind})" for n in found) or "none")
            + "; leave it one such input"
        )
    for name in found:
        settings = experiment.inputs[name]
        if trunk.pretrained and settings.standardise != "none":
            yield (
                f"inputs.{name}.standardise must be 'none' with trunk.pretrained, got "
                f"'{settings.standardise}': the model brings the mean and deviation that it was "
                "trained with; remove it"
            )


def _idle(trunk: "Trunk") -> Iterator[str]:
    for name in SETTINGS:
        if trunk.is_given(name):
            yield (
                f"trunk.{name.replace('_', '-')} is for trunk.architecture 'transformer' or "
                f"'timm', got {show(getattr(trunk, name))} with '{trunk.architecture}'; set the "
                "architecture, or remove it"
            )
