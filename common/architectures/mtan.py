"""Multi-task attention: one trunk, and masks per task that choose from the features of each stage.

Liu, Johns & Davison, "End-to-end multi-task learning with attention", CVPR 2019 (MTAN).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812  (the name everybody uses)
from torch import Tensor, nn

from common.architectures.trunk import SharedTrunk
from common.encoder import InputShapes, Shapes, State, build_encoder
from common.experiment import Experiment


class Attention(nn.Module):
    """One task's mask on what one stage gives (eqs. 1 and 2).

    With p the shared features and b what the task's mask left of the stage before,
    ``a = sigmoid(H relu(G [p, relu(F b)]))``, and ``a * p`` goes on; the first stage has no b. F, G
    and H act on each feature vector, or each pixel of an image, alike.

    Args:
        shape: p for one row: (channels, height, width) or (features,).
        below: channels or features of b; 0 in the first stage.
    """

    def __init__(self, shape: tuple[int, ...], below: int) -> None:
        super().__init__()
        width = shape[0]

        def layer(sources: int) -> nn.Module:
            return nn.Linear(sources, width) if len(shape) == 1 else nn.Conv2d(sources, width, 1)

        self.carry = layer(below) if below else None
        self.inner = layer(2 * width if below else width)
        self.outer = layer(width)

    def forward(self, features: Tensor, below: Tensor | None) -> Tensor:
        """Mask features [N, C, ...], given what is left of the stage before, [N, below, ...]."""
        read = features
        if self.carry is not None:
            read = torch.cat([features, F.relu(self.carry(below))], dim=1)
        masked: Tensor = features * self.outer(F.relu(self.inner(read))).sigmoid()
        return masked


class MultiTaskAttention(SharedTrunk):
    """One shared encoder; task t reads its last stage through t's mask, which saw all stages.

    After the paper, with three changes: a stage of these trunks has one layer, so that a mask reads
    the features that it masks (the paper: those of the layer before); F is a 1x1 convolution after
    the pooling (3x3 and before); there is no batch normalisation in the masks. In front of the
    fully connected layers, images are pooled to one pixel.

    In a federation the encoder travels. Masks belong to their tasks, and stay home unless told
    otherwise: what a client picks from the common features is its own.
    """

    def __init__(self, experiment: Experiment, shapes: InputShapes) -> None:
        super().__init__(experiment, shapes)
        self.encoder = build_encoder(experiment.trunk, shapes)
        self.width = self.encoder.width
        self.masks = self.for_each_task("mask", self._make_masks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, Tensor]:
        """Map input name -> [N, ...] to task name -> features [N, width]."""
        shared: State = ()
        left: dict[str, State] = dict.fromkeys(tasks, ())
        for stage in range(len(self.encoder.stage_shapes)):
            shared = self.encoder.run_stage(stage, shared, inputs)
            for task in tasks:
                masks = cast(nn.ModuleList, self.masks[f"task-{task}"])[stage]
                below = shrink(left[task], shared) or itertools.repeat(None)
                triples = zip(cast(nn.ModuleList, masks), shared, below, strict=False)
                left[task] = tuple(mask(features, old) for mask, features, old in triples)
        return {task: self.encoder.finish(left[task], inputs) for task in tasks}

    def _make_masks(self) -> nn.ModuleList:
        """Make one task's masks: stage by stage, one for each thing that the stage gives."""
        masks = nn.ModuleList()
        below: Shapes = ((0,),) * len(self.encoder.stage_shapes[0])
        for shapes in self.encoder.stage_shapes:
            masks.append(
                nn.ModuleList(
                    Attention(shape, width)
                    for shape, width in zip(shapes, shrunk_widths(below, shapes), strict=True)
                )
            )
            below = shapes
        return masks


def shrink(below: State, stage: State) -> Sequence[Tensor]:
    """Bring what is left of a stage to the resolution of the next: pooled images, or one vector."""
    if not below or below[0].ndim == 2:
        return below
    if stage[0].ndim == 4:
        return [F.max_pool2d(image, 2, ceil_mode=True) for image in below]
    return [torch.cat([image.amax((2, 3)) for image in below], dim=1)]


def shrunk_widths(below: Shapes, stage: Shapes) -> list[int]:
    """Count the channels or features of what `shrink` gives."""
    widths = [shape[0] for shape in below]
    return widths if len(stage[0]) == 3 else [sum(widths)]
