"""The private mean: its arithmetic, its noise, and a norm that follows its quantile."""

import math

import numpy as np
import pytest
from flwr.supercore.differential_privacy import compute_adaptive_noise_params
from scipy import stats

from common.experiment_file import load_experiment
from common.secure_aggregation.contribution import Contributions, grid_of
from common.wire import Instruction
from server.private_mean import PrivateMean

LEVEL = ["federation.weight-by=uniform", "privacy.client-level.max-norm=2"]
QUIET = "privacy.client-level.noise-multiplier=1e-9"


def make(*settings: str, clients: int = 4, seed: int | None = 0) -> PrivateMean:
    return PrivateMean(load_experiment("digits", [*LEVEL, *settings]), clients, seed)


def test_the_mean_is_of_clipped_updates_over_the_clients_that_are_expected() -> None:
    private = make(QUIET)
    before = np.array([1.0, 1.0], np.float32)
    # Updates (6, 8), cut to (1.2, 1.6), and (0, 1); of four expected clients, two answered.
    rows = before + np.array([[6, 8], [0, 1]], np.float32)
    mean = private.release(private.total(rows, before), before, 1)
    np.testing.assert_allclose(mean, 1 + np.array([1.2, 2.6]) / 4, atol=1e-6)


@pytest.mark.parametrize("clip", ["client", "server"])
def test_one_client_moves_the_sum_by_no_more_than_the_norm(clip) -> None:
    private, rng = make(QUIET, f"privacy.client-level.clip={clip}"), np.random.default_rng(0)
    before = rng.normal(size=50).astype(np.float32)
    rows = before + rng.normal(size=(6, 50)).astype(np.float32) * 10.0 ** np.arange(-3, 3)[:, None]
    with_all = private.total(rows.astype(np.float32), before).update
    for left_out in range(6):
        others = np.delete(rows, left_out, 0).astype(np.float32)
        moved = np.linalg.norm(with_all - private.total(others, before).update)
        assert moved <= 2 * (1 + 1e-12)


def test_the_noise_has_the_stated_deviation() -> None:
    private = make("privacy.client-level.noise-multiplier=1.5", seed=3)
    before = np.zeros(20_000, np.float32)
    noise = private.release(private.total(before[None], before), before, 1)
    stated = 1.5 * 2 / 4  # z C / m
    found = (noise.astype(np.float64) ** 2).sum() / stated**2
    assert 1e-6 < stats.chi2.cdf(found, len(noise)) < 1 - 1e-6
    assert stats.kstest(noise / stated, "norm").pvalue > 1e-4
    again = private.release(private.total(before[None], before), before, 1)
    other = private.release(private.total(before[None], before), before, 2)
    assert (again == noise).all()
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.05


@pytest.mark.parametrize("stretched", [1.0, 1.5])
def test_noise_on_a_secure_sum_is_measured_against_rounded_updates(stretched) -> None:
    """Half steps of a coarse grid: rounding makes an update 1.4 times as long."""
    width, bits = 60_000, "privacy.secure-aggregation.bits=8"
    private = make("privacy.client-level.noise-multiplier=1", bits, clients=10)
    update = np.full(width, stretched * 2 / math.sqrt(width), np.float32)
    made = Contributions(private.experiment, {"w": width}, seed=0)
    told = Instruction("", round=1, clients=10)
    numbers = made.make("a", update, 10, [], told)
    step = grid_of(private.experiment, told).step
    length = float(np.linalg.norm(numbers[:width].astype(np.float64))) * step
    assert length > 2 * 1.3
    before = np.zeros(width, np.float32)
    noise = private.release(private.total(before[None], before), before, 1)
    assert length <= noise.std() * 10 * 1.01 < 2 * 1.42  # z is 1, and ten clients are expected


def test_without_a_seed_no_noise_repeats() -> None:
    private, before = make("privacy.client-level.noise-multiplier=1", seed=None), np.zeros(5)
    first, second = (private.release(private.total(before[None], before), before, 1) for _ in "ab")
    assert (first != second).all()


def test_noise_that_clients_add_is_not_added_again_and_is_not_clipped() -> None:
    private = make("privacy.client-level.noise=client", "privacy.client-level.noise-multiplier=1")
    before, rows = np.zeros(2, np.float32), np.array([[30, 40]], np.float32)
    assert private.release(private.total(rows, before), before, 1).tolist() == [7.5, 10.0]


def test_the_norm_moves_by_the_papers_step() -> None:
    private = make(
        QUIET,
        "privacy.client-level.quantile=0.5",
        "privacy.client-level.quantile-noise=1e-6",
        "privacy.client-level.clip=server",
    )
    before = np.zeros(1, np.float32)
    rows = np.array([[1.0], [1.5], [1.9], [9.0]], np.float32)  # three of four within 2
    private.release(private.total(rows, before), before, 1)
    assert private.max_norm == pytest.approx(2 * math.exp(-0.2 * (0.75 - 0.5)), rel=1e-5)


@pytest.mark.parametrize("clip", ["client", "server"])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_norm_follows_its_quantile(quantile, clip) -> None:
    private = make(
        "privacy.client-level.noise-multiplier=0.3",
        f"privacy.client-level.quantile={quantile}",
        f"privacy.client-level.clip={clip}",
        clients=200,
    )
    before, rng = np.zeros(3, np.float32), np.random.default_rng(0)
    lengths = np.linspace(0.01, 1, 200)
    directions = rng.normal(size=(200, 3))
    updates = directions / np.linalg.norm(directions, axis=1, keepdims=True) * lengths[:, None]
    for number in range(150):
        sent = updates.astype(np.float32)
        if clip == "client":
            sent *= np.minimum(1, private.max_norm / lengths)[:, None].astype(np.float32)
        private.release(private.total(sent, before), before, number)
    assert private.max_norm == pytest.approx(np.quantile(lengths, quantile), abs=0.06)


@pytest.mark.parametrize("clients", [10, 100])
def test_noise_is_split_as_flower_splits_it(clients) -> None:
    private = make(
        "privacy.client-level.noise-multiplier=0.4",
        "privacy.client-level.quantile=0.5",
        clients=clients,
    )
    count, multiplier = compute_adaptive_noise_params(0.4, clients, None)
    assert (private.count_noise, private.update_noise) == pytest.approx((count, multiplier))


def test_state_brings_back_norm_and_clients() -> None:
    settings = ("privacy.client-level.epsilon=8", "privacy.client-level.quantile=0.5")
    sampling = ("federation.clients-per-round=40", "federation.sampling=poisson")
    amplified = (*settings, *sampling, "privacy.client-level.amplification=true")
    first = make(*amplified, clients=200)
    before = np.zeros(2, np.float32)
    first.release(first.total(np.ones((3, 2), np.float32), before), before, 1)
    other = make(*amplified, clients=100)
    other.restore(first.state())
    assert (other.max_norm, other.clients, other.poisson.rate) == (first.max_norm, 200, 0.2)
    assert other.noise_multiplier == first.noise_multiplier


def test_who_is_drawn_cannot_be_worked_out_from_the_seed_that_clients_know() -> None:
    deployed, again, simulated = make(QUIET, seed=None), make(QUIET, seed=None), make(QUIET, seed=0)
    assert len({deployed.poisson.key, again.poisson.key, simulated.poisson.key}) == 3
    assert deployed.poisson == deployed.poisson  # a round is drawn once, however often it is asked
