"""What the optimisers can be told: torch.optim's names, defaults and steps, or one clear line."""

import inspect

import pytest
import torch

from client.optimisers import make_optimiser
from client.torch_optimisers import CLASSES
from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.optimisers.table import OPTIMISERS
from common.sections.training import STACKED_OPTIMISERS, Training
from tests.conftest import make_experiment, make_rows
from tests.test_client_cohort import train_one_by_one, train_together, unlike
from tests.test_client_optimisers import make_layered

TORCH = {**CLASSES, "sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
TOLD = {
    "sgd": [{"nesterov": True}, {"dampening": 0.3}],
    "adam": [{"betas": [0.5, 0.9]}, {"eps": 0.1}, {"amsgrad": True, "betas": [0.9, 0.5]}],
    "adamw": [{"betas": [0.5, 0.9]}, {"eps": 0.1}, {"amsgrad": True, "betas": [0.9, 0.5]}],
    "adadelta": [{"rho": 0.5}, {"eps": 0.1}],
    "adagrad": [{"lr-decay": 0.5}, {"initial-accumulator-value": 2.0}, {"eps": 0.5}],
    "adamax": [{"betas": [0.5, 0.9]}, {"eps": 0.5}],
    "asgd": [{"lambd": 0.5}, {"lambd": 0.5, "alpha": 0.1}],
    "nadam": [{"betas": [0.5, 0.9]}, {"eps": 0.1}, {"momentum-decay": 0.5}],
    "radam": [{"betas": [0.5, 0.9]}, {"eps": 0.1}],
    "rmsprop": [{"alpha": 0.5}, {"eps": 0.5}, {"momentum": 0.7}, {"centered": True}],
    "rprop": [{"etas": [0.2, 1.5]}, {"step-sizes": [0.04, 0.15]}],
}
CASES = [(name, told) for name, several in TOLD.items() for told in several]
SET_ELSEWHERE = {"self", "params", "lr", "weight_decay", "decoupled_weight_decay"}
OF_NO_EFFECT = {"foreach", "fused", "capturable", "differentiable", "maximize", "t0"}
NOT_OFFERED = SET_ELSEWHERE | OF_NO_EFFECT  # t0 is of an average that steps do not use


def torch_defaults(name: str) -> dict:
    signature = inspect.signature(getattr(torch.optim, TORCH[name]).__init__)
    defaults = {n: p.default for n, p in signature.parameters.items() if n not in NOT_OFFERED}
    if name == "sgd":
        del defaults["momentum"]  # training.momentum
    return defaults


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_options_are_torchs_with_its_defaults(name):
    assert OPTIMISERS[name].load().Options().model_dump() == torch_defaults(name)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_option_is_tried(name):
    tried = {key for told in TOLD[name] for key in told}
    assert tried == set(OPTIMISERS[name].load().Options().model_dump(by_alias=True))


def make(name: str, told: dict, lr: float = 0.1) -> tuple[Training, dict]:
    """Settings with these options, and what torch.optim is to be told."""
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    settings = Training(optimiser=name, lr=lr, optimiser_options=told, **momentum)
    return settings, {**{k.replace("-", "_"): v for k, v in told.items()}, **momentum}


def walk(settings: Training) -> torch.Tensor:
    """Take six steps, of which the head sits out two; returns every place on the way, [6, 10]."""
    generator = torch.Generator().manual_seed(0)
    values, gradients = torch.randn(1, 10, generator=generator), torch.zeros(1, 10)
    parts, places = make_layered((0.1, 0.0)), []
    ours = make_optimiser(values, settings, parts, gradients)
    for step in range(6):
        gradients.copy_(torch.randn(1, 10, generator=generator))
        ours.step(1, parts[:1] if step in (0, 3) else parts)
        places.append(values[0].clone())
    return torch.stack(places)


@pytest.mark.parametrize(("name", "told"), CASES)
def test_steps_with_options_equal_torchs(name, told):
    settings, theirs_told = make(name, told)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 10, generator=generator)[0]
    trunk, head = (torch.nn.Parameter(part.clone()) for part in (start[:6], start[6:]))
    decoupled = name == "adamw"
    groups = [
        {"params": [trunk], **({"weight_decay": 0.1} if decoupled else {})},
        {"params": [head], **({"weight_decay": 0.0} if decoupled else {})},
    ]
    theirs, places = getattr(torch.optim, TORCH[name])(groups, lr=0.1, **theirs_told), []
    for step in range(6):
        slope = torch.randn(1, 10, generator=generator)[0]
        trunk.grad = slope[:6] + (0.0 if decoupled else 0.1 * trunk.detach())
        head.grad = None if step in (0, 3) else slope[6:].clone()
        theirs.step()
        places.append(torch.cat([trunk.detach(), head.detach()]))
    torch.testing.assert_close(walk(settings), torch.stack(places), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "told"), CASES)
def test_every_option_changes_the_steps(name, told):
    less = {k: v for k, v in told.items() if k not in list(told)[-1:]}
    assert (walk(make(name, told)[0]) - walk(make(name, less)[0])).abs().max() > 1e-4


@pytest.mark.parametrize(("name", "told"), [c for c in CASES if c[0] in STACKED_OPTIMISERS])
def test_clients_side_by_side_take_the_same_steps(name, told):
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    training = {"optimiser": name, "lr": 0.05, "optimiser-options": told, "epochs": 2, **momentum}
    experiment = make_experiment(training=training)
    parts = [unlike(make_rows(n, n), place) for place, n in enumerate((3, 17, 8))]
    alone, _ = train_one_by_one(experiment, parts)
    together, _ = train_together(experiment, parts)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    plain, _ = train_together(
        make_experiment(training={**training, "optimiser-options": {}}), parts
    )
    assert (plain - together).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            ["training.optimiser-options.betas=[0.9]"],
            "training.optimiser-options.betas must be a list of finite numbers of at least 0 and "
            "below 1 (2 of them), got [0.9]",
        ),
        (
            ["training.optimiser-options.beta=0.9"],
            "training.optimiser-options.beta is no setting. Did you mean 'betas'? Keys of "
            "[training.optimiser-options]: betas, eps, amsgrad (training.optimiser is 'adam')",
        ),
        (
            ["training.optimiser=rprop", "training.optimiser-options.etas=[1.5, 2.0]"],
            "training.optimiser-options.etas: needs one below 1 and then one above 1, got "
            "[1.5, 2.0] (training.optimiser is 'rprop')",
        ),
        (
            ["training.optimiser=rprop", "training.optimiser-options.step-sizes=[2.0, 1.0]"],
            "training.optimiser-options.step-sizes: needs the shortest first, got [2.0, 1.0]",
        ),
        (
            ["training.optimiser=sgd", "training.optimiser-options.nesterov=true"],
            "training.optimiser-options.nesterov needs training.momentum above 0, got true with "
            "momentum 0; set momentum, or remove it",
        ),
        (
            [
                "training.optimiser=sgd",
                "training.momentum=0.9",
                "training.optimiser-options.nesterov=true",
                "training.optimiser-options.dampening=0.5",
            ],
            "training.optimiser-options.dampening must be 0 with nesterov, got 0.5; remove one of "
            "the two",
        ),
    ],
)
def test_what_an_optimiser_cannot_be_told_is_refused_in_a_line(settings, line):
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits", settings)
    assert line in str(caught.value)
