"""Encoders: networks from a row's inputs to one vector of features, built from stages.

A trunk is one encoder, or several that a sharing architecture ties together; stages are the places
where it can tie them.
"""

import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from common.norms import make_norm, needs_bias
from common.recomputing import forget
from common.sections.model import Trunk

Shapes = tuple[tuple[int, ...], ...]
InputShapes = Mapping[str, tuple[int, ...]]  # input name -> shape of one row
State = tuple[Tensor, ...]  # what a stage hands on: an image of each image input, or one vector

BY_PIXEL = frozenset({"cpu"})  # kinds of devices whose images lie pixel by pixel
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}


class Seeded(nn.Module):
    """What draws in training, from a generator of the caller's.

    Attributes:
        generator: set before training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None

    def begin_batch(self) -> None:
        """Draw anew from here on, for batches that come as a whole."""

    def take_micro_batch(self, rows: int, place: slice) -> None:
        """Expect these rows next, of a batch of so many."""


class SeededDropout(Seeded):
    """Dropout (Srivastava et al. 2014) whose masks come from a generator of the caller's.

    PyTorch's own draws from a global state, so that a result would depend on which client a
    process trained before. A batch in micro-batches gets the masks that it gets as a whole: they
    are drawn for all its rows at once and kept until the next batch.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self._part: tuple[int, slice] | None = None
        self._kept: Tensor | None = None

    def begin_batch(self) -> None:
        """As `Seeded`."""
        self._part = self._kept = None

    def take_micro_batch(self, rows: int, place: slice) -> None:
        """As `Seeded`."""
        self._part = rows, place

    def forward(self, features: Tensor) -> Tensor:
        """Zero each entry with probability `rate` and scale the rest, in training only."""
        if not self.training:
            return features
        if self.generator is None:
            raise RuntimeError("SeededDropout needs a generator before training")
        keep = self._draw(features.shape)
        return features * keep.to(features.device) / (1 - self.rate)

    def _draw(self, shape: torch.Size) -> Tensor:
        """Draw what is kept of [N, ...]."""
        if self._part is None:
            return torch.rand(shape, generator=self.generator) >= self.rate
        rows, place = self._part
        if self._kept is None:
            self._kept = torch.rand((rows, *shape[1:]), generator=self.generator) >= self.rate
        return self._kept[place]


def dense_block(width: int, out: int, settings: Trunk) -> list[nn.Module]:
    """Make one fully connected layer with what follows it."""
    layers: list[nn.Module] = [nn.Linear(width, out, needs_bias(settings))]
    layers += make_norm(out, settings)
    if settings.activation != "none":
        layers.append(ACTIVATIONS[settings.activation]())
    if settings.dropout:
        layers.append(SeededDropout(settings.dropout))
    return layers


class Blocks(nn.Sequential):
    """Layers one after another, in blocks; the modules are those of the sequence.

    Attributes:
        spans: the places of each block's first layer and of that behind its last.
    """

    def __init__(self, blocks: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__(*(layer for block in blocks for layer in block))
        ends = list(itertools.accumulate(map(len, blocks), initial=0))
        self.spans = list(itertools.pairwise(ends))

    def run_block(self, number: int, features: Tensor) -> Tensor:
        """Pass features through one block."""
        # By place: an adapter may have taken that of a layer.
        for layer in tuple(self)[slice(*self.spans[number])]:
            features = layer(features)
        return features


class DenseLayers(Blocks):
    """Fully connected layers, one block after another.

    Attributes:
        width: number of features it gives.
    """

    def __init__(self, width: int, settings: Trunk) -> None:
        blocks = []
        for out in settings.widths:
            blocks.append(dense_block(width, out, settings))
            width = out
        self.width = width
        super().__init__(blocks)


class Encoder(nn.Module):
    """Stacks over some inputs, one each; then all inputs through fully connected layers.

    Its stages are the places where encoders can be tied: first every stack's first block (a
    convolution, or a ready model as a whole), then their second, and so on; then one fully
    connected layer after another. An encoder of another kind says what its stages are by
    `stage_shapes`, `compute_stage` and `finish`.

    Args:
        settings: sizes of the fully connected layers.
        shapes: input name -> shape of one row.
        stacks: input name -> its blocks; all stacks have as many.
        convolved: what the stacks make of one row: per stage, a shape for each stack.

    Attributes:
        width: number of features it gives.
        stage_shapes: per stage, the shapes of what it gives for one row: an image for each stack,
            or one vector.
        recomputes: whether training forgets what stages gave and computes it again for the
            backward pass, a stretch of stages at a time; see `common.recomputing`.
    """

    recomputes = False

    def recompute(self) -> None:
        """Recompute activations from here on."""
        self.recomputes = True

    def __init__(
        self,
        settings: Trunk,
        shapes: InputShapes,
        stacks: Mapping[str, Blocks],
        convolved: Sequence[Shapes],
    ) -> None:
        super().__init__()
        self.names, self.images = tuple(shapes), tuple(stacks)
        # A prefix, because a ModuleDict refuses names such as "type", which modules have.
        self.stacks = nn.ModuleDict({f"input-{name}": stack for name, stack in stacks.items()})
        images = zip(self.images, convolved[-1], strict=True) if convolved else ()
        joined = {**shapes, **dict(images)}
        self.layers = DenseLayers(sum(math.prod(s) for s in joined.values()), settings)
        self.width = self.layers.width
        self.stage_shapes = [*convolved, *(((width,),) for width in settings.widths)]
        self._convolutions = len(convolved)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Map input name -> [N, ...] to features [N, width]."""
        state: State = ()
        for stages in self._stretches():
            state = self._run(stages, state, inputs)
        return self.finish(state, inputs)

    def run_stage(self, stage: int, state: State, inputs: Mapping[str, Tensor]) -> State:
        """Do one stage, for a trunk that ties encoders together; as `compute_stage`."""
        return self._run(range(stage, stage + 1), state, inputs)

    def _stretches(self) -> Iterator[range]:
        """Part the stages into stretches: as many, about, as there are stages in each.

        What stands between stretches is kept and one stretch is computed again at a time, so that
        of L stages about ``2 sqrt(L)`` are in memory (Chen et al. 2016, section 4.1).
        """
        stages = len(self.stage_shapes)
        length = max(1, math.isqrt(stages))
        for start in range(0, stages, length):
            yield range(start, min(start + length, stages))

    def _run(self, stages: range, state: State, inputs: Mapping[str, Tensor]) -> State:
        """Do some stages, one after another."""

        def run() -> State:
            done = state
            for stage in stages:
                done = self.compute_stage(stage, done, inputs)
            return done

        if not (self.recomputes and self.training and torch.is_grad_enabled()):
            return run()
        drops = (module for module in self.modules() if isinstance(module, SeededDropout))
        return forget(run, list({d.generator for d in drops if d.generator is not None}))

    def compute_stage(self, stage: int, state: State, inputs: Mapping[str, Tensor]) -> State:
        """Compute one stage.

        Args:
            stage: its number, from 0.
            state: what the stage before gave; nothing before the first.
            inputs: input name -> [N, ...].

        Returns:
            A tensor for each of `stage_shapes`, [N, ...].
        """
        dense = stage - self._convolutions
        if dense < 0:
            images = state or [_channels_last(inputs[name]) for name in self.images]
            stacks = cast(Iterable[Blocks], self.stacks.values())
            return tuple(s.run_block(stage, i) for s, i in zip(stacks, images, strict=True))
        return (self.layers.run_block(dense, state[0] if dense else self._join(state, inputs)),)

    def finish(self, state: State, inputs: Mapping[str, Tensor]) -> Tensor:
        """Turn what the last stage gave into features [N, width]."""
        return state[0] if self.layers.spans else self._join(state, inputs)

    def _join(self, images: State, inputs: Mapping[str, Tensor]) -> Tensor:
        """Flatten what came through the stacks and all other inputs, side by side."""
        convolved = dict(zip(self.images, images, strict=True)) if images else {}
        return side_by_side({**inputs, **convolved}, self.names)


class MLP(Encoder):
    """Flatten and concatenate all inputs, then fully connected layers."""

    def __init__(self, settings: Trunk, shapes: InputShapes) -> None:
        super().__init__(settings, shapes, {}, [])


class CNN(Encoder):
    """Per image input: 3x3 convolutions with 2x2 max pooling; then all inputs through dense layers.

    The activation follows the pooling, which leaves it a quarter of the values; for one that never
    falls, such as ReLU, the order makes no difference to the result. A norm comes before the
    pooling and sees all places.
    """

    def __init__(self, settings: Trunk, shapes: InputShapes) -> None:
        stacks, convolved = {}, []
        for name, shape in shapes.items():
            if len(shape) != 3:
                continue
            channels, height, breadth = shape
            blocks, sizes = [], []
            for out in settings.channels:
                layers: list[nn.Module] = [
                    nn.Conv2d(channels, out, 3, padding=1, bias=needs_bias(settings))
                ]
                layers += make_norm(out, settings)
                layers += [nn.MaxPool2d(2, ceil_mode=True), ACTIVATIONS[settings.activation]()]
                channels, height, breadth = out, (height + 1) // 2, (breadth + 1) // 2
                blocks.append(layers)
                sizes.append((channels, height, breadth))
            stacks[name] = Blocks(blocks)
            convolved.append(sizes)
        super().__init__(settings, shapes, stacks, list(zip(*convolved, strict=True)))


def side_by_side(inputs: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Flatten inputs and lay them side by side, [N, D]."""
    flat = [inputs[name].flatten(1) for name in names]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def _channels_last(images: Tensor) -> Tensor:
    """Lay images [N, C, H, W] out pixel by pixel: on a CPU, pooling takes half the time then."""
    if images.device.type not in BY_PIXEL or images.ndim != 4:
        return images
    if images.shape[1] > 1:
        return images.contiguous(memory_format=torch.channels_last)
    # With one channel both layouts are one, and PyTorch goes by the strides.
    _, _, height, width = images.shape
    return images.contiguous().as_strided(images.shape, (height * width, 1, width, 1))


class ReadyEncoder(Encoder):
    """A ready model over the image or the text; then all inputs through fully connected layers.

    The ready model is one stage. An input of text is the one whose rows are [1, tokens].
    """

    def __init__(self, settings: Trunk, shapes: InputShapes) -> None:
        module, _, name = READY[settings.architecture].partition(":")
        make = getattr(importlib.import_module(module), name)
        read = next(name for name, shape in shapes.items() if len(shape) > 1)
        ready = make(settings, shapes[read])
        super().__init__(settings, shapes, {read: Blocks([[ready]])}, [((ready.width,),)])
        self._recompute_ready: Callable[[], None] = ready.recompute

    def recompute(self) -> None:
        """Let the ready model do it, layer by layer: as one stage it would save nothing.

        Raises:
            ConfigError: it cannot.
        """
        self._recompute_ready()


READY = {  # architecture -> where its class is: it loads a library that takes seconds
    "transformer": "common.backbones.transformer:Transformer",
    "timm": "common.backbones.timm_model:TimmModel",
}
ENCODERS: dict[str, Callable[[Trunk, InputShapes], Encoder]] = {
    "mlp": MLP,
    "cnn": CNN,
    **dict.fromkeys(READY, ReadyEncoder),
}


def build_encoder(settings: Trunk, shapes: InputShapes) -> Encoder:
    """Build the encoder that the trunk's settings name.

    Raises:
        ConfigError: a ready model's library or folder cannot be used.
    """
    return ENCODERS[settings.architecture](settings, shapes)
