import math
from typing import Any

import pytest

from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from common.privacy.client_level import client_events, client_noise, update_noise

LEVEL = (
    "tasks.ink.metric='mae'",  # a mean, which can be noised
    "federation.weight-by='uniform'",
    "federation.rounds=10",
    "privacy.client-level.noise-multiplier=2.0",
)


def experiment(*overrides: str) -> Experiment:
    return load_experiment("digits", [*LEVEL, *overrides])


def test_a_client_pays_for_the_rounds_it_took_part_in() -> None:
    assert client_events(experiment(), 10, 4) == [Event(2.0, 1.0, 4)]


def test_with_amplification_a_round_is_a_poisson_sample() -> None:
    sampled = experiment(
        "federation.sampling='poisson'",
        "federation.clients-per-round=5",
        "privacy.client-level.amplification=true",
    )
    assert client_events(sampled, 20, 4) == [Event(2.0, 0.25, 4)]


def test_a_sample_of_more_than_there_are_is_all() -> None:
    sampled = experiment(
        "federation.sampling='poisson'",
        "federation.clients-per-round=5",
        "privacy.client-level.amplification=true",
    )
    assert client_events(sampled, 3, 4) == [Event(2.0, 1.0, 4)]


@pytest.mark.parametrize(
    ("overrides", "replies"),
    [
        ((), 4 + 1),  # a training reply per round, and the last evaluation
        (("evaluation.by='message'",), 4 + 4 + 1),
        (("evaluation.by='message'", "evaluation.every=2"), 4 + 2 + 1),
    ],
)
def test_noised_sums_cost_an_event_per_reply(overrides: Any, replies: int) -> None:
    noised = experiment("privacy.sums='noised'", "privacy.sums-noise-multiplier=8.0", *overrides)
    assert client_events(noised, 10, 4) == [Event(2.0, 1.0, 4), Event(8.0, 1.0, replies)]


def test_noised_sums_cost_the_replies_that_were_sent() -> None:
    noised = experiment("privacy.sums='noised'", "privacy.sums-noise-multiplier=8.0")
    assert client_events(noised, 10, 4, replies=3)[1] == Event(8.0, 1.0, 3)


def test_no_round_costs_nothing() -> None:
    noised = experiment("privacy.sums='noised'", "privacy.sums-noise-multiplier=8.0")
    assert epsilon_of(client_events(noised, 10, 0), 1e-5) == 0


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federation.sampling='poisson'", "federation.clients-per-round=5",
         "privacy.client-level.amplification=true"),
        ("privacy.sums='noised'", "privacy.sums-noise-multiplier=20.0"),
    ],
)  # fmt: skip
def test_noise_found_from_a_budget_spends_it_in_all_rounds(overrides: tuple[str, ...]) -> None:
    budget = load_experiment("digits", [*LEVEL[:3], "privacy.client-level.epsilon=4.0", *overrides])
    spent = epsilon_of(client_events(budget, 20, 10), 1e-5)
    assert 3.99 < spent <= 4.0


def test_a_given_noise_multiplier_is_the_noise() -> None:
    assert client_noise(experiment("privacy.client-level.epsilon=0.1"), 10) == 2.0


@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("sigma_b", [2.5, 10.0])
def test_update_and_count_together_cost_one_event(z: float, sigma_b: float) -> None:
    together = [Event(update_noise(z, sigma_b)), Event(2 * sigma_b)]
    assert epsilon_of(together, 1e-5) == pytest.approx(epsilon_of([Event(z)], 1e-5))


def test_much_noise_on_the_count_leaves_the_update_its_own() -> None:
    assert update_noise(1.0, 1e6) == pytest.approx(1.0)
    assert math.isclose(update_noise(1.0, 1.0), 1 / math.sqrt(1 - 1 / 4))


def test_a_count_that_costs_more_than_the_round_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"quantile-noise must be above 0\.5"):
        update_noise(1.0, 0.5)
