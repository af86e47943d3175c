"""What example-level privacy costs a client, in numbers to check by hand."""

import pytest

from common.algorithms import ALGORITHMS
from common.errors import ConfigError
from common.privacy.accounting import PRECISION, Event, epsilon_of, find_noise_multiplier
from common.privacy.example_level import (
    check_delta,
    example_events,
    example_noise,
    steps_per_round,
)
from tests.conftest import make_experiment

ZERO = {"kind": "regression", "init": "zero"}


def private(algorithm: str = "joint", training: dict | None = None, **level):
    level = {"noise-multiplier": 2.0, "delta": 1e-3, **level}
    return make_experiment(
        federation={"algorithm": algorithm, "rounds": 10},
        training={"batch-size": 4, "epochs": 3, **(training or {})},
        privacy={"example-level": {k: v for k, v in level.items() if v is not None}},
    )


def test_a_row_is_drawn_in_each_step_of_each_epoch_of_each_round():
    # 10 rows, batches of 4: 3 steps an epoch, 9 a round, 45 in 5 rounds; a row is in 4 of 10.
    assert example_events(private(), 10, 5) == [Event(2.0, 0.4, 45)]


def test_a_client_smaller_than_a_batch_takes_all_of_its_rows():
    assert example_events(private(), 3, 5) == [Event(2.0, 1.0, 15)]


def test_a_client_that_took_no_part_has_released_nothing():
    assert example_events(private(), 10, 0) == []


def test_nothing_is_released_without_a_mechanism_to_count_it():
    assert example_events(make_experiment(), 10, 5) == []


@pytest.mark.parametrize(
    ("algorithm", "passes"),
    {"joint": 3, "fedprox": 3, "fedrep": 3 + 10, "ditto": 3 + 3, "apfl": 3 + 3}.items(),
)
def test_every_phase_counts(algorithm, passes):
    assert steps_per_round(private(algorithm), 8) == 2 * passes  # batches of 4


@pytest.mark.parametrize(
    ("rows", "accountant"),
    [(3, "rdp"), (10, "rdp"), (70, "rdp"), pytest.param(10, "pld", marks=pytest.mark.slow)],
)
def test_noise_from_a_budget_spends_it_and_no_more(rows, accountant):
    level = {"noise-multiplier": None, "epsilon": 6.0, "delta": 1e-3}
    experiment = private(**level)
    privacy = experiment.privacy.model_copy(update={"accountant": accountant})
    experiment = experiment.model_copy(update={"privacy": privacy})
    (event,) = example_events(experiment, rows, 10)  # all rounds
    assert 0.99 * 6 < epsilon_of([event], 1e-3, accountant) <= 6
    assert epsilon_of(example_events(experiment, rows, 5), 1e-3, accountant) < 5


@pytest.mark.parametrize("epsilon", [0.3, 6.0, 40.0])
@pytest.mark.parametrize("sampling", [1.0, 0.4, 0.01])
def test_the_search_finds_the_smallest_noise(epsilon, sampling):
    events = [Event(1.0, sampling, 300)]
    found = find_noise_multiplier(epsilon, 1e-3, events)
    assert epsilon_of([Event(found, sampling, 300)], 1e-3) <= epsilon
    less = found * (1 - 2 * PRECISION) - PRECISION
    assert epsilon_of([Event(less, sampling, 300)], 1e-3) > epsilon


def test_a_smaller_client_needs_more_noise():
    experiment = private(**{"noise-multiplier": None, "epsilon": 6.0})
    assert example_noise(experiment, 12) > example_noise(experiment, 60)


def test_delta_must_be_below_one_over_the_rows():
    experiment = private(delta=0.1)
    check_delta(experiment, 9)
    with pytest.raises(ConfigError, match=r"client 'a': .*delta must be below 1/10.*got 0.1"):
        check_delta(experiment, 10, "a")
    with pytest.raises(ConfigError, match="below 1/10"):
        example_noise(experiment, 10)


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"federation": {"algorithm": "fedbabu"}}, "covers must be 'trunk'"),
        ({"federation": {"algorithm": "fedala"}}, "must not be 'fedala'"),
        ({"training": {"compile": True}}, "training.compile must be false"),
        ({"training": {"balance": "none"}}, "training.balance is of no use"),
        (
            {"federation": {"algorithm": "fedbabu"}, "tasks": {"a": ZERO}},
            "tasks.a.init must be 'random'",
        ),
        ({"trunk": {"norm": "batch"}}, "trunk.norm must not be 'batch'"),
        ({"loss": {"weighting": "uncertainty"}}, "loss.weighting must be one of equal, manual"),
    ],
)
def test_what_cannot_be_kept_is_refused(tables, told):
    privacy = {"example-level": {"noise-multiplier": 1.0}}
    with pytest.raises(ValueError, match=told):
        make_experiment(privacy=privacy, **tables)


def test_heads_without_noise_need_heads_that_stand_still():
    covers = {"example-level": {"noise-multiplier": 1.0, "covers": "trunk"}}
    for algorithm in ALGORITHMS:
        if algorithm == "fedbabu":
            make_experiment(privacy=covers, federation={"algorithm": algorithm})
            continue
        with pytest.raises(ValueError, match="covers 'trunk' needs"):
            make_experiment(privacy=covers, federation={"algorithm": algorithm})
