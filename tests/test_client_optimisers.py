"""The flat optimisers take torch.optim's steps, each part with its own rates."""

import math

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from client.flat import TRUNK, FlatLayout
from client.optimisers import Part, PlainSGD, clip_gradients, make_optimiser, make_parts
from client.rates import StepSchedule
from client.torch_optimisers import CLASSES
from common.model import build_model
from common.optimisers.table import OPTIMISERS
from common.sections.training import STACKED_OPTIMISERS, Training
from tests.conftest import make_experiment

CASES = [
    {"optimiser": "sgd", "lr": 0.1},
    {"optimiser": "sgd", "lr": 0.1, "momentum": 0.9},
    {"optimiser": "adam", "lr": 0.01},
    {"optimiser": "adamw", "lr": 0.01},
]
DECAYS = {"none": (0.0, 0.0), "alike": (0.1, 0.1), "trunk": (0.1, 0.0), "unlike": (0.01, 0.2)}


def make_layered(decays, l1=(0.0, 0.0)) -> list[Part]:
    """A trunk of six numbers and a head of four."""
    places = {"trunk": slice(0, 6), "head": slice(6, 10)}
    rates = zip(places.items(), decays, l1, strict=True)
    return [Part(name, [place], decay=decay, l1=rate) for (name, place), decay, rate in rates]


def reference(settings: Training, parameters, decays):
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    groups = [
        {"params": [parameter], "weight_decay": decay}
        for parameter, decay in zip(parameters, decays, strict=True)
    ]
    more = {"momentum": settings.momentum} if settings.optimiser == "sgd" else {}
    return kinds[settings.optimiser](groups, lr=settings.lr, **more)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("options", CASES)
def test_steps_equal_torch_optim_even_where_a_head_has_no_gradient(options, decays):
    settings = Training(**options)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(10, generator=generator)
    values, gradients = start.clone().unsqueeze(0), torch.zeros(1, 10)
    parts = make_layered(DECAYS[decays])
    ours = make_optimiser(values, settings, parts, gradients)
    trunk, head = (torch.nn.Parameter(part.clone()) for part in (start[:6], start[6:]))
    theirs = reference(settings, [trunk, head], DECAYS[decays])
    for step in range(6):
        gradients.copy_(torch.randn(1, 10, generator=generator))
        head_is_taught = step % 3 != 1
        trunk.grad = gradients[0, :6].clone()
        head.grad = gradients[0, 6:].clone() if head_is_taught else None
        theirs.step()
        ours.step(1, parts if head_is_taught else parts[:1])
    expected = torch.cat([trunk.detach(), head.detach()])
    torch.testing.assert_close(values[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", CASES)
def test_an_l1_term_is_its_sign_in_the_gradient(options):
    settings = Training(**options)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 10, generator=generator)
    slopes = [torch.randn(1, 10, generator=generator) for _ in range(4)]
    told, gradients = start.clone(), torch.zeros(1, 10)
    parts = make_layered((0.1, 0.1), l1=(0.3, 0.0))
    optimiser = make_optimiser(told, settings, parts, gradients)
    plain, own = start.clone(), torch.zeros(1, 10)
    without = make_layered((0.1, 0.1))
    expected = make_optimiser(plain, settings, without, own)
    for slope in slopes:
        gradients.copy_(slope)
        optimiser.step(1, parts)
        own.copy_(slope)
        own[:, :6] += 0.3 * plain[:, :6].sign()
        expected.step(1, without)
    torch.testing.assert_close(told, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("options", CASES)
def test_clipped_and_scheduled_steps_equal_those_of_torch(options, decays):
    settings = Training(**options, clip_norm=2.0, step_schedule="one-cycle")
    generator, steps = torch.Generator().manual_seed(0), 6
    start = torch.randn(10, generator=generator)
    values, gradients = start.clone().unsqueeze(0), torch.zeros(1, 10)
    parts = make_layered(DECAYS[decays])
    rates = StepSchedule(settings).rates(np.array([steps]))
    ours = make_optimiser(values, settings, parts, gradients, rates=rates)
    trunk, head = (torch.nn.Parameter(part.clone()) for part in (start[:6], start[6:]))
    theirs = reference(settings, [trunk, head], DECAYS[decays])
    schedule = OneCycleLR(theirs, settings.lr, steps, cycle_momentum=False)
    norms = []
    for step in range(steps):
        gradients.copy_(torch.randn(1, 10, generator=generator) * (step + 1) / 3)
        head_is_taught = step % 3 != 1
        trunk.grad = gradients[0, :6].clone()
        head.grad = gradients[0, 6:].clone() if head_is_taught else None
        norms.append(float(torch.nn.utils.clip_grad_norm_([trunk, head], 2.0)))
        theirs.step()
        schedule.step()
        ours.step(1, parts if head_is_taught else parts[:1])
    assert min(norms) < 2.0 < max(norms)
    expected = torch.cat([trunk.detach(), head.detach()])
    torch.testing.assert_close(values[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CLASSES)
def test_an_optimiser_of_torch_by_name_takes_its_steps(name):
    settings = Training(optimiser=name, lr=0.1, step_schedule="cosine", clip_norm=3.0)
    generator, steps = torch.Generator().manual_seed(0), 7
    start = torch.randn(10, generator=generator)
    values, gradients = start.clone().unsqueeze(0), torch.zeros(1, 10)
    parts = make_layered((0.1, 0.0))
    rates = StepSchedule(settings).rates(np.array([steps]))
    ours = make_optimiser(values, settings, parts, gradients, rates=rates)
    trunk, head = (torch.nn.Parameter(part.clone()) for part in (start[:6], start[6:]))
    theirs = getattr(torch.optim, CLASSES[name])([trunk, head], lr=0.1)
    schedule = CosineAnnealingLR(theirs, steps)
    for step in range(steps):
        gradients.copy_(torch.randn(1, 10, generator=generator))
        head_is_taught = step % 3 != 1
        trunk.grad = gradients[0, :6].clone()
        head.grad = gradients[0, 6:].clone() if head_is_taught else None
        torch.nn.utils.clip_grad_norm_([trunk, head], 3.0)
        trunk.grad += 0.1 * trunk.detach()
        theirs.step()
        schedule.step()
        ours.step(1, parts if head_is_taught else parts[:1])
    expected = torch.cat([trunk.detach(), head.detach()])
    torch.testing.assert_close(values[0], expected, rtol=1e-6, atol=1e-7)
    assert (expected - start).abs().max() > 1e-4


def test_every_optimiser_has_its_line_and_is_stacked_or_torchs():
    assert set(OPTIMISERS) == {*CLASSES, *STACKED_OPTIMISERS}


def test_each_client_is_clipped_by_its_own_norm():
    gradients = torch.tensor([[3.0, 4.0, 9.0], [0.3, 0.4, 9.0]])
    clip_gradients(gradients, [Part("trunk", [slice(0, 1)]), Part("head", [slice(1, 2)])], 1.0)
    # 5 becomes 1, 0.5 stays; the last column is of no part that steps
    torch.testing.assert_close(gradients, torch.tensor([[0.6, 0.8, 9.0], [0.3, 0.4, 9.0]]))


def test_clients_go_through_the_schedule_each_by_its_own_steps():
    training = Training(step_schedule="cosine")
    rates = StepSchedule(training).rates(np.array([4, 3]))
    found = [rates.next(rows, 1.0) for rows in (2, 2, 1, 2)]
    long, short = ([(1 + math.cos(math.pi * t / n)) / 2 for t in range(n)] for n in (4, 3))
    assert found[0] == 1.0
    assert found[1] == pytest.approx([long[1], short[1]])
    assert found[2] == pytest.approx(long[2])
    assert found[3] == pytest.approx([long[3], short[2]])


def test_sgd_by_hand():
    values, gradients = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, 20.0]])
    part = Part("trunk", [slice(0, 1)])
    optimiser = make_optimiser(values, Training(optimiser="sgd", lr=0.5), [part], gradients)
    optimiser.step(1, [part])
    assert values.tolist() == [[-4.0, 2.0]]  # 1 - 0.5 * 10; the second was not asked to step


def test_decay_and_l1_by_hand():
    values, gradients = torch.tensor([[2.0, -2.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    part = Part("trunk", [slice(0, 3)], decay=0.5, l1=3.0)
    optimiser = make_optimiser(values, Training(optimiser="sgd", lr=0.5), [part], gradients)
    optimiser.step(1, [part])
    # 2 - (1 + 0.5 * 2 + 3) / 2, -2 - (1 - 0.5 * 2 - 3) / 2, and 0 - 1 / 2: the sign of 0 is 0
    assert values.tolist() == [[-0.5, -0.5, -0.5]]


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("options", CASES)
def test_clients_that_are_not_active_stand_still_as_if_never_asked(options, decays):
    settings = Training(**options)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(3, 4, generator=generator)
    slopes = [torch.randn(3, 4, generator=generator) for _ in range(4)]
    active = [torch.tensor(a) for a in ([1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1])]
    together, gradients = start.clone(), torch.zeros(3, 4)
    _, decay = DECAYS[decays]
    part = Part("head", [slice(0, 4)], decay=decay, l1=0.01)
    optimiser = make_optimiser(together, settings, [part], gradients)
    for slope, mask in zip(slopes, active, strict=True):
        gradients.copy_(slope)
        optimiser.step(3, [Part("head", part.places, mask.bool(), decay, part.l1)])
    for k in range(3):
        alone, gradients = start[k : k + 1].clone(), torch.zeros(1, 4)
        optimiser = make_optimiser(alone, settings, [part], gradients)
        for slope, mask in zip(slopes, active, strict=True):
            if mask[k]:
                gradients.copy_(slope[k : k + 1])
                optimiser.step(1, [part])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-6, atol=1e-7)


def parts_of(**tables) -> dict[str, Part]:
    experiment = make_experiment(**tables)
    return make_parts(FlatLayout(build_model(experiment, {"x": (8,)})), experiment)


def test_a_part_without_rates_of_its_own_has_those_of_training():
    tasks = {
        "kind": {"kind": "multiclass", "classes": 3, "l1": 0.0},
        "flag": {"kind": "binary", "weight-decay": 0.5},
    }
    parts = parts_of(
        tasks=tasks, training={"weight-decay": 0.1, "l1": 0.2}, trunk={"weight-decay": 0.0}
    )
    rates = {name: (part.decay, part.l1) for name, part in parts.items()}
    assert rates[TRUNK] == (0.0, 0.2)
    assert rates["kind"] == (0.1, 0.0)
    assert rates["flag"] == (0.5, 0.2)


def test_only_what_no_term_penalises_takes_the_plain_step():
    plain, penalised = parts_of(), parts_of(trunk={"l1": 0.1})
    values, settings = torch.zeros(1, 3), Training()
    assert isinstance(make_optimiser(values, settings, plain.values()), PlainSGD)
    assert not isinstance(make_optimiser(values, settings, penalised.values()), PlainSGD)
