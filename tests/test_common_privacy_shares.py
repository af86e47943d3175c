"""Noise in shares: exact samples, the stated variance on the sum, and what it costs."""

import math
from fractions import Fraction

import numpy as np
import pytest

from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of, find_noise_multiplier
from common.privacy.client_level import client_events
from common.privacy.discrete_gaussian import Bits, sample_discrete_gaussian
from common.privacy.ledger import _event_json, _read_event, add_costs
from common.privacy.shares import Shares, largest_norm, shares_epsilon
from common.secure_aggregation.contribution import Contributions, require_room, shares_of
from common.secure_aggregation.grids import Grid
from common.secure_aggregation.layout import Part

KEY = bytes(range(32))


def shares(**changes):
    settings = {"noise_multiplier": 1.0, "steps": 2**19 - 1, "width": 1000, "guaranteed": 7}
    return Shares(**{**settings, "distribution": "discrete-gaussian", **changes})


def private(*settings):
    return load_experiment(
        "digits",
        [
            "federation.weight-by=uniform",
            "privacy.client-level.noise=shares",
            "privacy.client-level.noise-multiplier=1.0",
            "privacy.client-level.max-norm=2.0",
            "privacy.secure-aggregation.bits=20",
            *settings,
        ],
    )


@pytest.mark.parametrize("variance", [1, 4, 100, 10**10])
def test_discrete_gaussian_samples_have_mean_zero_and_the_variance(variance):
    count = 100_000
    values = sample_discrete_gaussian(variance, count, Bits(KEY)).astype(float)
    assert abs(values.mean()) < 5 * math.sqrt(variance / count)
    # The variance of a sample variance is 2 v^2 / n; five deviations.
    assert values.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


def test_discrete_gaussian_samples_have_the_stated_probabilities():
    count, variance = 200_000, 2
    values = sample_discrete_gaussian(variance, count, Bits(KEY))
    weights = {k: math.exp(-(k**2) / (2 * variance)) for k in range(-40, 41)}
    total = sum(weights.values())
    for k in range(-4, 5):
        p = weights[k] / total
        assert (values == k).mean() == pytest.approx(p, abs=5 * math.sqrt(p / count))


def test_a_coin_that_64_bits_leave_open_is_thrown_with_more():
    class Fixed(Bits):
        def __init__(self, words):
            self.left = list(words)

        def words(self, count):
            found, self.left = self.left[:count], self.left[count:]
            return np.array(found, np.uint64)

    half, third = Fraction(1, 2), Fraction(1, 3)
    # Just below and at a half: the first 64 bits decide, but too near for double precision.
    assert Fixed([2**63 - 1]).decide(np.array([0.5]), lambda _: half).tolist() == [True]
    assert Fixed([2**63]).decide(np.array([0.5]), lambda _: half).tolist() == [False]
    # A third begins with exactly these 64 bits, so that the next ones decide.
    first = 2**64 // 3
    for following, expected in ((0, True), (2**64 - 1, False)):
        coin = Fixed([first, following]).decide(np.array([1 / 3]), lambda _: third)
        assert coin.tolist() == [expected]


def test_samples_repeat_from_a_key_and_differ_without_one():
    alike = [sample_discrete_gaussian(100, 50, Bits(KEY)) for _ in range(2)]
    np.testing.assert_array_equal(*alike)
    fresh = [sample_discrete_gaussian(100, 50, Bits()) for _ in range(2)]
    assert (fresh[0] != fresh[1]).any()


@pytest.mark.parametrize("distribution", ["discrete-gaussian", "skellam"])
def test_the_guaranteed_shares_add_up_to_the_noise_that_was_asked_for(distribution):
    noise = shares(distribution=distribution, width=20_000, noise_multiplier=0.5)
    generator, bits = np.random.default_rng(0), Bits(KEY)
    total = sum(noise.sample(generator, bits) for _ in range(noise.guaranteed))
    wanted = (0.5 * noise.norm) ** 2
    assert total.var() == pytest.approx(wanted, rel=5 * math.sqrt(2 / 20_000))
    assert noise.guaranteed * noise.variance >= wanted


@pytest.mark.parametrize("bits", [8, 12])
def test_a_rounded_update_is_never_longer_than_what_noise_is_measured_against(bits):
    width, grid, random = 5000, Grid(2.0, bits), np.random.default_rng(0)
    made = Contributions(private(), {"trunk.w": width}, seed=0)
    update = random.normal(size=width)
    update *= 2.0 / np.linalg.norm(update)  # as long as may be
    part, norm = Part(update.astype(np.float32), 1.0, ()), largest_norm(grid.limit, width)
    lengths = [np.linalg.norm(made._within(part, grid, random, norm)) for _ in range(30)]
    assert max(lengths) <= norm
    assert max(lengths) > grid.limit  # rounding does lengthen
    # No attempt keeps a norm below the update's own: it is rounded towards zero, and shorter.
    assert np.linalg.norm(made._within(part, grid, random, 1.0)) <= grid.limit


def test_rounding_adds_little_to_the_norm_on_a_fine_grid():
    assert largest_norm(2**19 - 1, 10**6) / (2**19 - 1) < 1 + 2e-6
    assert largest_norm(127, 10_000) == pytest.approx(
        math.sqrt(min(127**2 + 2500 + 127 + 50, (127 + 100) ** 2))
    )


@pytest.mark.parametrize("distribution", ["discrete-gaussian", "skellam"])
def test_shares_on_a_fine_grid_cost_what_gaussian_noise_costs(distribution):
    noise = shares(distribution=distribution)
    assert noise.effective_multiplier() == pytest.approx(1.0, rel=1e-6)
    gaussian = epsilon_of([Event(1.0)], 1e-5)
    assert shares_epsilon(noise, 1, 1e-5) == pytest.approx(gaussian, rel=0.01)
    assert shares_epsilon(noise, 1, 1e-5) >= gaussian * (1 - 1e-6)


@pytest.mark.parametrize("distribution", ["discrete-gaussian", "skellam"])
def test_shares_on_a_coarse_grid_cost_more(distribution):
    wanted = 0.999 * math.sqrt(100) / largest_norm(1, 10_000)  # each share has the variance 1
    settings = {"steps": 1, "width": 10_000, "guaranteed": 100, "noise_multiplier": wanted}
    coarse = shares(distribution=distribution, **settings)
    assert coarse.variance == 1
    assert coarse.effective_multiplier() < wanted * (1 - 1e-3)


def test_noise_that_whole_numbers_cannot_carry_is_refused():
    experiment = private(
        "privacy.secure-aggregation.bits=8",
        "privacy.client-level.noise-multiplier=0.02",
        "privacy.client-level.distribution=skellam",
    )
    with pytest.raises(ConfigError, match="raise bits, or the noise multiplier"):
        require_room(experiment, 10, 100)


def test_noise_that_has_no_room_is_refused():
    experiment = private(
        "privacy.secure-aggregation.bits=24", "privacy.client-level.noise-multiplier=100"
    )
    with pytest.raises(ConfigError, match="and their noise in 32 bits"):
        require_room(experiment, 100, 100)
    require_room(private(), 100, 100)


def test_shares_go_by_those_who_are_guaranteed_to_stay():
    few, many = (shares_of(private(), clients, 10) for clients in (10, 100))
    assert (few.guaranteed, many.guaranteed) == (7, 66)
    assert few.variance / many.variance == pytest.approx(66 / 7)


def test_skellam_noise_is_accounted_at_whole_orders_alone():
    level = ["privacy.client-level.distribution=skellam"]
    (skellam,), (gaussian,) = (client_events(private(*more), 10, 100) for more in (level, []))
    assert (skellam.whole_orders, gaussian.whole_orders) == (True, False)
    noise = shares(distribution="skellam", noise_multiplier=skellam.noise_multiplier)
    told = epsilon_of([skellam], 1e-5)
    assert told == pytest.approx(shares_epsilon(noise, 100, 1e-5), rel=1e-6)
    assert told > 1.1 * epsilon_of([gaussian], 1e-5)  # whose best order is below 2
    assert find_noise_multiplier(told, 1e-5, [skellam]) == pytest.approx(1.0, abs=2e-3)


def test_a_ledger_remembers_that_noise_was_skellams():
    cost = add_costs([{"client": (Event(1.0, whole_orders=True),)}, {"client": (Event(1.0),)}])
    assert sorted(event.whole_orders for event in cost["client"]) == [False, True]
    assert [_read_event(_event_json(event)) for event in cost["client"]] == list(cost["client"])
