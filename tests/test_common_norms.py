"""Norms do PyTorch's arithmetic, also where a batch has nothing to normalise by."""

import pytest
import torch
from torch import nn

from common.encoder import build_encoder
from common.norms import NORMS, BatchNorm, GroupNorm, make_norm
from common.sections.model import Trunk

SHAPES = {"features": (8,), "images": (8, 3, 5)}
TORCH = {
    ("batch", "features"): lambda: nn.BatchNorm1d(8),
    ("batch", "images"): lambda: nn.BatchNorm2d(8),
    ("layer", "features"): lambda: nn.LayerNorm(8),
    ("layer", "images"): lambda: nn.GroupNorm(1, 8),
    ("group", "features"): lambda: nn.GroupNorm(2, 8),
    ("group", "images"): lambda: nn.GroupNorm(2, 8),
}


def draw(shape, seed=0) -> torch.Tensor:
    return torch.randn(6, *SHAPES[shape], generator=torch.Generator().manual_seed(seed)) * 3 + 1


@pytest.mark.parametrize(("norm", "shape"), TORCH)
def test_a_norm_equals_pytorchs_in_training_and_in_evaluation(norm, shape):
    (ours,) = make_norm(8, Trunk(norm=norm, norm_groups=2, widths=(8,)))
    theirs = TORCH[norm, shape]()
    with torch.no_grad():
        for module in (ours, theirs):
            values = list(module.parameters())[:2]
            values[0].copy_(torch.linspace(0.5, 2, 8))
            values[1].copy_(torch.linspace(-1, 1, 8))
    for seed in range(3):
        inputs = draw(shape, seed).requires_grad_()
        copy = inputs.detach().clone().requires_grad_()
        torch.testing.assert_close(ours(inputs), theirs(copy))
        ours(inputs).square().sum().backward()
        theirs(copy).square().sum().backward()
        torch.testing.assert_close(inputs.grad, copy.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(draw(shape)), theirs.eval()(draw(shape)))


def test_running_statistics_by_hand():
    norm = BatchNorm(1)
    norm(torch.tensor([[1.0], [3.0]]))
    assert norm.norm_mean.tolist() == pytest.approx([0.2])  # 0.9 * 0 + 0.1 * 2
    assert norm.norm_variance.tolist() == pytest.approx([1.1])  # 0.9 * 1 + 0.1 * 2, unbiased


@pytest.mark.parametrize("norm", [n for n in NORMS if n != "none"])
@pytest.mark.parametrize("shape", [(8,), (8, 1, 1)])
def test_a_row_alone_trains_without_nan(norm, shape):
    (module,) = make_norm(8, Trunk(norm=norm, norm_groups=2, widths=(8,)))
    result = module(draw("features")[:1].reshape(1, *shape))
    result.square().sum().backward()
    assert torch.isfinite(result).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.requires_grad)


def test_a_row_alone_is_normalised_by_the_running_statistics_and_leaves_them():
    norm = BatchNorm(2)
    with torch.no_grad():
        norm.norm_mean.fill_(1.0)
        norm.norm_variance.fill_(4.0)
    torch.testing.assert_close(norm(torch.tensor([[5.0, 1.0]])), torch.tensor([[2.0, 0.0]]))
    assert norm.norm_mean.tolist() == [1.0, 1.0]
    assert norm.norm_variance.tolist() == [4.0, 4.0]


def test_no_gradient_reaches_running_statistics():
    norm = BatchNorm(8)
    norm(draw("features")).sum().backward()
    assert norm.norm_mean.grad is None
    assert norm.norm_variance.grad is None


@pytest.mark.parametrize("norm", NORMS)
def test_every_layer_and_convolution_of_a_trunk_is_normalised(norm):
    settings = Trunk(architecture="cnn", channels=(4, 8), widths=(12, 16), norm=norm, norm_groups=4)
    encoder = build_encoder(settings, {"x": (1, 6, 6)})
    found = [m for m in encoder.modules() if isinstance(m, BatchNorm | GroupNorm)]
    widths = [len(m.norm_weight) for m in found]
    assert widths == ([] if norm == "none" else [4, 8, 12, 16])
    assert torch.isfinite(encoder({"x": torch.randn(1, 1, 6, 6)})).all()
