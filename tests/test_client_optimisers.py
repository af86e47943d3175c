"""The flat optimisers take torch.optim's steps."""

import pytest
import torch

from client.optimisers import Part, make_optimiser
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
    values, gradients = start.clone().unsqueeze(0), torch.zeros(1, 10)
    ours = make_optimiser(values, settings, gradients)
    parts = [Part("trunk", [slice(0, 6)]), Part("head", [slice(6, 10)])]
    trunk, head = (torch.nn.Parameter(part.clone()) for part in (start[:6], start[6:]))
    theirs = reference(settings, [trunk, head])
    for step in range(6):
        gradients.copy_(torch.randn(1, 10, generator=generator))
        head_is_taught = step % 3 != 1
        trunk.grad = gradients[0, :6].clone()
        head.grad = gradients[0, 6:].clone() if head_is_taught else None
        theirs.step()
        ours.step(1, parts if head_is_taught else parts[:1])
    expected = torch.cat([trunk.detach(), head.detach()])
    torch.testing.assert_close(values[0], expected, rtol=1e-6, atol=1e-7)


def test_sgd_by_hand():
    values, gradients = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])
    optimiser = make_optimiser(values, Training(optimiser="sgd", lr=0.5), gradients)
    optimiser.step(1, [Part("trunk", [slice(0, 1)])])
    assert values.tolist() == [[-4.0, 2.0]]  # 1 - 0.5 * 10; the second was not asked to step


@pytest.mark.parametrize("options", CASES)
def test_clients_that_are_not_active_stand_still_as_if_never_asked(options):
    settings = Training(**options)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 4, generator=generator)
    slopes = [torch.randn(3, 4, generator=generator) for _ in range(4)]
    active = [torch.tensor(a) for a in ([1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1])]
    together, gradients = start.clone(), torch.zeros(3, 4)
    optimiser = make_optimiser(together, settings, gradients)
    for slope, mask in zip(slopes, active, strict=True):
        gradients.copy_(slope)
        optimiser.step(3, [Part("head", [slice(0, 4)], mask.bool())])
    for k in range(3):
        alone, gradients = start[k : k + 1].clone(), torch.zeros(1, 4)
        optimiser = make_optimiser(alone, settings, gradients)
        for slope, mask in zip(slopes, active, strict=True):
            if mask[k]:
                gradients.copy_(slope[k : k + 1])
                optimiser.step(1, [Part("head", [slice(0, 4)])])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-6, atol=1e-7)
