"""Draws of rows and noise, and clipping."""

import numpy as np
import pytest
import torch

from client.place import Place
from client.row_privacy import RowPrivacy, clip_factors, is_private, open_draws
from client.training import Trainer
from tests.conftest import make_experiment

LEVEL = {"noise-multiplier": 2.0, "max-norm": 0.5, "delta": 1e-4}


def private(**tables):
    return make_experiment(privacy={"example-level": LEVEL}, **tables)


def of(counts, simulated=True, round_number=1):
    experiment, counts = private(), np.array(counts, np.int64)
    names = [f"c{place}" for place in range(len(counts))]
    draws = open_draws(experiment, names, round_number, simulated=simulated)
    return RowPrivacy.of(experiment, counts, draws)


def test_without_example_level_privacy_there_is_nothing_to_draw_from():
    assert not open_draws(make_experiment(), ["a"], 1, simulated=True)


def test_rates_divisors_and_noise_by_hand():
    privacy = of([16, 2])  # batches of 4
    np.testing.assert_allclose(privacy.rates, [0.25, 1])
    np.testing.assert_allclose(privacy.expected, [4, 2])
    np.testing.assert_allclose(privacy.deviations, [2 * 0.5 / 4, 2 * 0.5 / 2])
    assert privacy.steps.tolist() == [4, 1]


def test_noise_has_the_stated_deviation():
    noise = of([16, 2]).draw_noise(2, 40_000)
    # The deviation of a deviation from n draws is 1 / sqrt(2 n): 0.35 %; of a mean, 0.5 %.
    np.testing.assert_allclose(noise.std(1), [0.25, 0.5], rtol=0.015)
    np.testing.assert_allclose(noise.mean(1) / noise.std(1), [0, 0], atol=0.02)


def test_rows_are_a_poisson_sample():
    privacy = of([400])
    sizes = np.array([len(privacy.draw_rows(0, 400)) for _ in range(2000)])
    assert sizes.mean() == pytest.approx(4, abs=0.2)  # binomial: deviation 2, of the mean .045
    assert sizes.std() == pytest.approx(2, abs=0.15)
    assert sizes.min() == 0  # an empty batch is an ordinary one


def test_a_simulated_client_draws_the_same_again_and_nobody_else_does():
    first, again, later = of([9, 9]), of([9, 9]), of([9, 9], round_number=2)
    ours, same, other = (p.draw_noise(2, 5) for p in (first, again, later))
    assert torch.equal(ours, same)
    assert not torch.isin(ours[0], torch.cat([ours[1], other.flatten()])).any()


def test_a_real_client_never_draws_the_same():
    assert not torch.equal(of([9], simulated=False).draw_noise(1, 5), of([9]).draw_noise(1, 5))
    first, again = (of([9], simulated=False).draw_noise(1, 5) for _ in range(2))
    assert not torch.isin(first, again).any()


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize("level", [{"example-level": LEVEL}, {}])
def test_a_real_clients_dropout_is_as_secret_as_its_noise(level, simulated):
    experiment = make_experiment(privacy=level, trunk={"dropout": 0.5})
    trainer = Trainer(experiment, {"x": (8,)}, torch.device("cpu"), simulated)
    one, again = (torch.rand(9, generator=trainer.generator("a", 1)) for _ in range(2))
    assert torch.equal(one, again) is (simulated or not level)


@pytest.mark.parametrize(
    ("config", "simulated"),
    [
        ({"partition-id": 0, "num-partitions": 2, "simulated": True}, True),
        ({}, False),
        ({"partition-id": 0, "num-partitions": 2}, False),  # a real node may have these as well
        ({"partition-id": 0, "state": "/state"}, False),
        ({"client": "a"}, False),
    ],
)
def test_only_nodes_of_a_simulation_draw_from_the_seed(config, simulated):
    assert Place.of(config).simulated is simulated


@pytest.mark.parametrize("norm", [0.0, 1e-30, 0.1, 0.5, 0.6, 7.0, 1e18])
def test_clipping_never_lengthens(norm):
    factor = float(clip_factors(torch.tensor([norm**2]), 0.5)[0])
    assert factor <= 1
    assert factor * norm <= 0.5 * (1 + 1e-6)
    assert factor == 1 or norm > 0.5  # and leaves short ones as they are


@pytest.mark.parametrize("square", [float("inf"), float("nan")])
def test_a_gradient_that_is_no_number_counts_for_nothing(square):
    assert clip_factors(torch.tensor([square]), 0.5).tolist() == [0]


def test_noise_covers_what_the_experiment_says():
    whole = private()
    assert all(is_private(whole, moves) for moves in ("all", "trunk", "heads"))
    level = {"example-level": {**LEVEL, "covers": "trunk"}}
    trunk = make_experiment(privacy=level, federation={"algorithm": "fedbabu"})
    assert is_private(trunk, "trunk")
    assert not is_private(trunk, "heads")
    assert not is_private(make_experiment(), "all")
