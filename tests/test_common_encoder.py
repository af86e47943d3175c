"""Encoders stage by stage: what stages give has the shapes they announce."""

import pytest
import torch

from common.encoder import build_encoder
from common.sections.model import Trunk

SHAPES = {"left": (1, 5, 7), "age": (3,), "right": (2, 4, 4)}
FLAT = 35 + 3 + 32
CASES = {
    "mlp": (Trunk(widths=(6, 4)), [((6,),), ((4,),)], 4),
    "mlp without layers": (Trunk(widths=()), [], FLAT),
    "cnn": (
        Trunk(architecture="cnn", channels=(8, 3), widths=(6,)),
        [((8, 3, 4), (8, 2, 2)), ((3, 2, 2), (3, 1, 1)), ((6,),)],
        6,
    ),
    "cnn without layers": (
        Trunk(architecture="cnn", channels=(2,), widths=()),
        [((2, 3, 4), (2, 2, 2))],
        2 * 12 + 3 + 2 * 4,
    ),
    "cnn without convolutions": (
        Trunk(architecture="cnn", channels=(), widths=(6,)),
        [((6,),)],
        6,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_stages_give_the_shapes_they_announce(case):
    settings, shapes, width = CASES[case]
    encoder = build_encoder(settings, SHAPES)
    assert encoder.stage_shapes == shapes
    inputs = {name: torch.randn(3, *shape) for name, shape in SHAPES.items()}
    state = ()
    for stage, announced in enumerate(shapes):
        state = encoder.run_stage(stage, state, inputs)
        assert tuple(part.shape[1:] for part in state) == announced
    features = encoder.finish(state, inputs)
    assert features.shape == (3, width)
    assert encoder.width == width
    assert torch.equal(features, encoder(inputs))


def test_inputs_lie_side_by_side_in_their_own_order():
    encoder = build_encoder(Trunk(architecture="cnn", channels=(2,), widths=()), SHAPES)
    inputs = {name: torch.zeros(1, *shape) for name, shape in SHAPES.items()}
    inputs["age"] += 7
    features = encoder({name: inputs[name] for name in reversed(inputs)})
    assert features[0, 24:27].tolist() == [7, 7, 7]  # behind the left image's 2 x 3 x 4
