"""Schedules have the arithmetic of torch.optim.lr_scheduler, and are functions of a place alone."""

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.methods import make_options
from common.schedules.rates import rate_of_round, settings_of_round
from common.schedules.table import SCHEDULES

TOTAL = 23


def warmed(optimiser, warm_up, then):
    """A rise over `warm_up` steps, then another schedule."""
    rise = theirs.LinearLR(optimiser, 1 / (warm_up + 1), total_iters=warm_up)
    return theirs.SequentialLR(optimiser, [rise, then(optimiser)], [warm_up])


# Name, options, and torch's scheduler for an optimiser of rate 1.
CASES = [
    ("constant", {}, lambda o: theirs.ConstantLR(o, 1.0)),
    ("warm-up", {"length": 7, "start": 0.2}, lambda o: theirs.LinearLR(o, 0.2, total_iters=7)),
    ("cosine", {"floor": 0.1}, lambda o: theirs.CosineAnnealingLR(o, TOTAL, 0.1)),
    (
        "cosine",
        {"warm-up": 4},
        lambda o: warmed(o, 4, lambda p: theirs.CosineAnnealingLR(p, TOTAL - 4)),
    ),
    ("step", {"every": 5, "gamma": 0.3}, lambda o: theirs.StepLR(o, 5, 0.3)),
    (
        "step",
        {"every": 5, "warm-up": 3},
        lambda o: warmed(o, 3, lambda p: theirs.StepLR(p, 5, 0.5)),
    ),
    ("exponential", {"gamma": 0.8}, lambda o: theirs.ExponentialLR(o, 0.8)),
    (
        "cyclic",
        {"half": 4, "floor": 0.2},
        lambda o: theirs.CyclicLR(o, 0.2, 1.0, 4, cycle_momentum=False),
    ),
    (
        "cyclic",
        {"half": 4, "floor": 0.2, "shrink": 0.5},
        lambda o: theirs.CyclicLR(o, 0.2, 1.0, 4, mode="triangular2", cycle_momentum=False),
    ),
    (
        "one-cycle",
        {},
        lambda o: theirs.OneCycleLR(o, 1.0, TOTAL, cycle_momentum=False),
    ),
    (
        "one-cycle",
        {"rise": 0.5, "start": 0.1, "end": 0.01},
        lambda o: theirs.OneCycleLR(
            o, 1.0, TOTAL, pct_start=0.5, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
    ),
]


def schedule(name, options):
    return SCHEDULES[name].load()(make_options(SCHEDULES, name, options))


@pytest.mark.parametrize(("name", "options", "make"), CASES)
@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_factors_are_those_of_torch(name, options, make):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, expected = make(optimiser), []
    for _ in range(TOTAL):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    ours = schedule(name, options)
    found = [ours.factor(place, TOTAL) for place in range(TOTAL)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_every_schedule_is_compared_with_torch():
    assert {name for name, _, _ in CASES} == set(SCHEDULES)


@pytest.mark.parametrize(("name", "options", "make"), CASES)
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_every_factor_is_positive_and_at_most_one_past_the_end_too(name, options, make, total):
    ours = schedule(name, options)
    assert all(0 < ours.factor(place, total) <= 1 for place in range(total + 2))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_says_it_ends_depends_on_the_number_and_no_other_does(name):
    ours = schedule(name, {})
    long, short = ([ours.factor(place, n) for place in range(8)] for n in (20, 10))
    assert (long != short) is ours.ENDS


def test_one_step_alone_is_taken_at_the_full_rate():
    assert schedule("one-cycle", {}).factor(0, 1) == 1.0
    assert schedule("cosine", {}).factor(0, 1) == 1.0


def load(*settings):
    return load_experiment("digits", list(settings))


def test_a_rounds_rate_by_hand():
    experiment = load(
        "training.lr=0.8",
        "training.schedule=step",
        "training.schedule-options.every=2",
        "federation.rounds=6",
    )
    rates = [rate_of_round(experiment, number) for number in range(1, 7)]
    assert rates == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
    assert settings_of_round(experiment, 5) == experiment.training.model_copy(
        update={"lr": rates[4]}
    )


@pytest.mark.parametrize(("name", "counts"), [("cosine", True), ("step", False)])
def test_rounds_are_in_the_fingerprint_where_a_schedule_ends_with_them(name, counts):
    one, other = (
        load(f"training.schedule={name}", f"federation.rounds={rounds}") for rounds in (20, 30)
    )
    assert (one.fingerprint() != other.fingerprint()) is counts
    over_steps = f"training.step-schedule={name}"
    one, other = (load(over_steps, f"federation.rounds={rounds}") for rounds in (20, 30))
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["training.schedule=cosin"], r"got 'cosin'.*Did you mean 'cosine'"),
        (["training.schedule-options.floor=0.1"], r"training.schedule-options.floor is no setting"),
        (
            ["training.schedule=cosine", "training.schedule-options.floor=1.0"],
            r"training.schedule-options.floor must be .* got 1.0.*training.schedule is 'cosine'",
        ),
        (
            ["training.step-schedule=cyclic", "training.step-schedule-options.haf=2"],
            r"training.step-schedule-options.haf is no setting. Did you mean 'half'",
        ),
        (
            ["training.schedule=step", "federation.rounds=10"],
            r"training.schedule must be 'constant' .* got 'step'.* federation.rounds = 10",
        ),
        (["training.schedule=cosine", "federation.rounds=1"], r"changes nothing"),
        (
            [
                "training.schedule=cosine",
                "training.schedule-options.warm-up=9",
                "federation.rounds=9",
            ],
            r"warm-up must be below federation.rounds.* got 9 with 9",
        ),
        (["training.clip-norm=0.0"], r"training.clip-norm must be"),
        (
            ["training.step-schedule=cosine", "federation.strategy=qfedavg"],
            r"client-learning-rate must be given under training.step-schedule 'cosine'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(settings, words):
    with pytest.raises(ConfigError, match=words):
        load(*settings)
