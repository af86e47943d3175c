"""The flat optimisers take torch.optim's steps."""

import pytest
import torch

from client.optimisers import make_optimiser
from common.experiment import Training

CASES = [
    {"optimiser": "sgd", "lr": 0.1},
    {"optimiser": "sgd", "lr": 0.1, "momentum": 0.9},
    {"optimiser": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    {"optimiser": "adam", "lr": 0.01},
    {"optimiser": "adam", "lr": 0.01, "weight_decay": 0.1},
    {"optimiser": "adamw", "lr": 0.01, "weight_decay": 0.1},
]


def reference(settings: Training, parameters):
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, settings.lr, settings.momentum, weight_decay=settings.weight_decay
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimiser]
    return kind(parameters, settings.lr, weight_decay=settings.weight_decay)


@pytest.mark.parametrize("options", CASES)
def test_steps_equal_torch_optim_even_where_a_head_has_no_gradient(options):
    settings = Training(**options)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, generator=generator)
    values, gradients = start.clone(), torch.zeros(10)
    ours = make_optimiser(values, gradients, settings)
    trunk, head = (torch.nn.Parameter(part.clone()) for part in (start[:6], start[6:]))
    theirs = reference(settings, [trunk, head])
    for step in range(6):
        gradients.copy_(torch.randn(10, generator=generator))
        head_is_taught = step % 3 != 1
        trunk.grad = gradients[:6].clone()
        head.grad = gradients[6:].clone() if head_is_taught else None
        theirs.step()
        ours.step([slice(0, 6), slice(6, 10)] if head_is_taught else [slice(0, 6)])
    expected = torch.cat([trunk.detach(), head.detach()])
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-7)


def test_sgd_by_hand():
    values, gradients = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    make_optimiser(values, gradients, Training(optimiser="sgd", lr=0.5)).step([slice(0, 1)])
    assert values.tolist() == [-4.0, 2.0]  # 1 - 0.5 * 10; the second was not asked to step
