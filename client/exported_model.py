"""A client's model as one module that needs no fedmtl: raw numbers in, answers out.

Scalings are inside. The module takes, by input name,

- numeric: float64 [N, columns], as they stand in a file; an empty cell is NaN,
- image: float32 [N, channels, height, width], likewise,
- categorical: float32 [N, places], one-hot: a 1 in the place of each column's category,
- text: int64 [N, 1, tokens], as the tokenizer numbers them, -1 behind the last,

and gives, by task, its classes or values, and ``<task>.probability`` (see `client.answers`).
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from client.answers import read_output
from client.kept_model import KeptModel
from common.encoding import scaling_for, target_scales
from common.pretrained.adapters import merge_adapters
from common.scaling import Scaling
from common.sections.rows import Input

DTYPES = {"numeric": "float64", "categorical": "float32", "image": "float32", "text": "int64"}
PLAIN = ("categorical", "text")  # kinds that are encoded outside


class ScaledInput(nn.Module):
    """What encoding does to one numeric or image input.

    Args:
        settings: the input's settings.
        scaling: the federation's or the client's, where there is one.
    """

    def __init__(self, settings: Input, scaling: Scaling | None) -> None:
        super().__init__()
        self.scale, self.missing = settings.scale, settings.missing
        self.standardises = settings.standardise != "none"
        self.is_image = settings.kind == "image"
        self.mean: Tensor
        self.deviation: Tensor
        if scaling is not None:
            shape = (1, -1, 1, 1) if self.is_image else (1, -1)
            self.register_buffer("mean", torch.tensor(scaling.mean).reshape(shape))
            self.register_buffer("deviation", torch.tensor(scaling.deviation).reshape(shape))

    def forward(self, values: Tensor) -> Tensor:
        """Encode raw values [N, ...]; float32 of the same shape."""
        values = values / self.scale
        if self.missing == "zero":
            values = torch.where(values.isnan(), torch.zeros_like(values), values)
        if self.missing == "mean":
            values = torch.where(values.isnan(), self.mean, values)
        if self.standardises:
            values = (values - self.mean) / self.deviation
        return values.float()

    def undo(self, values: Tensor) -> Tensor:
        """Turn standardised values into raw ones."""
        if self.standardises or self.missing == "mean":
            values = values * self.deviation + self.mean
        return values * self.scale


class ExportedModel(nn.Module):
    """Trunk and heads of one client with all that is done before and after them.

    Args:
        kept: the model.
    """

    def __init__(self, kept: KeptModel) -> None:
        super().__init__()
        self.model = kept.build()
        merge_adapters(self.model)
        self.settings = {task: kept.experiment.tasks[task] for task in kept.tasks}
        self.scales = target_scales(kept.fitted)
        self.names = tuple(kept.experiment.inputs)
        self.encoders = nn.ModuleDict(
            {
                f"input-{name}": ScaledInput(settings, _scaling(kept, name))
                for name, settings in kept.experiment.inputs.items()
                if settings.kind not in PLAIN
            }
        )
        self.eval().requires_grad_(False)

    def unscale(self, name: str, values: Tensor) -> Tensor:
        """Turn standardised values of one input into raw ones."""
        return cast(ScaledInput, self.encoders[f"input-{name}"]).undo(values)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to output name -> [N] or [N, width]."""
        encoded = {
            name: self.encoders[f"input-{name}"](inputs[name])
            if f"input-{name}" in self.encoders
            else inputs[name]
            for name in self.names
        }
        outputs, _ = self.model(encoded, tuple(self.settings))
        answers: dict[str, Tensor] = {}
        for task, settings in self.settings.items():
            value, probability = read_output(settings, outputs[task], self.scales.get(task))
            answers[task] = value
            if probability is not None:
                answers[f"{task}.probability"] = probability
        return answers


def _scaling(kept: KeptModel, name: str) -> Scaling | None:
    settings = kept.experiment.inputs[name]
    if settings.standardise == "none" and settings.missing != "mean":
        return None
    return scaling_for(name, kept.experiment, kept.agreement, kept.fitted)
