"""Bounds and estimates of epsilon, on mechanisms whose epsilon is known."""

import math

import numpy as np
import pytest

from common.privacy.accounting import Event, epsilon_of
from simulations.attacks.audit_bound import (
    audit,
    lower_bound,
    p_value,
    refuted_shift,
    refutes_gaussian,
)
from simulations.attacks.audit_estimate import LARGEST, cosines, gaussian_epsilon

DELTA = 1e-5


def guess_gaussian(canaries: int, noise: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """The scores of canaries under Gaussian noise, and whether each was in."""
    included = rng.random(canaries) < 0.5
    return included + noise * rng.standard_normal(canaries), included


def theorem(m, r, v, epsilon, delta):
    """Theorem 5.2 in the form of the paper's appendix: one term of the sum after another."""
    q = 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    worst, between = 0.0, 0.0
    for i in range(1, v + 1):
        between += mass[v - i]
        worst = max(worst, between / i)
    return min(1.0, sum(mass[v:]) + 2 * m * delta * worst)


@pytest.mark.parametrize(
    "case", [(100, 100, 70, 0.3, 1e-3), (50, 20, 20, 3.0, 1e-5), (200, 80, 50, 1.0, 1e-4),
             (30, 10, 0, 1.0, 1e-3), (40, 40, 40, 0.0, 0.0)]
)  # fmt: skip
def test_the_p_value_is_the_theorem_s(case):
    assert p_value(*case) == pytest.approx(theorem(*case), rel=1e-9)


def test_all_right_guesses_without_delta_bound_as_randomised_response():
    # (e^eps / (1 + e^eps))^r = 0.05
    for guesses in (10, 100, 1000):
        chance = 0.05 ** (1 / guesses)
        expected = math.log(chance / (1 - chance))
        assert lower_bound(guesses, guesses, guesses, 0.0) == pytest.approx(expected, abs=1e-3)


def test_delta_weakens_the_bound_and_abstention_may_strengthen_it():
    assert lower_bound(1000, 600, 560, 1e-4) < lower_bound(1000, 600, 560, 1e-6)
    assert lower_bound(1000, 100, 100, 0.0) > lower_bound(1000, 1000, 700, 0.0)


def test_guesses_no_better_than_coins_refute_nothing():
    assert lower_bound(100, 100, 55, 0.0) == 0
    assert refuted_shift(100, 100, 55) == 0


def test_randomised_response_is_bounded_as_often_as_the_confidence_says():
    rng, epsilon = np.random.default_rng(0), 1.0
    chance = 1 / (1 + math.exp(-epsilon))
    above = [lower_bound(200, 200, int(rng.binomial(200, chance)), 0.0) > epsilon
             for _ in range(400)]  # fmt: skip
    assert 0.005 < np.mean(above) < 0.075  # 5 %, less what whole numbers cost


@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0, 2.0, 5.0])
def test_no_bound_passes_what_gaussian_noise_costs(noise):
    claimed = epsilon_of([Event(noise)], DELTA, "pld")
    rng = np.random.default_rng(1)
    for _ in range(5):
        bound = audit(*guess_gaussian(300, noise, rng), DELTA)
        assert bound.epsilon <= bound.gaussian <= claimed
        assert bound.right <= bound.guesses <= 300


def test_the_gaussian_bound_holds_as_often_as_its_confidence_says():
    rng, shift, above = np.random.default_rng(2), 0.5, 0
    for _ in range(300):
        scores, included = guess_gaussian(200, 1 / shift, rng)
        right = int(((scores > 0.5) == included).sum())
        above += refutes_gaussian(200, 200, right, shift)
    assert above / 300 <= 0.07


def test_more_right_guesses_refute_more_of_a_gaussian():
    # Guesses by the sign at distance mu are right with probability Phi(mu / 2): 0.9 at 2.56.
    found = [refuted_shift(1000, 1000, right) for right in (550, 700, 900, 1000)]
    assert found == sorted(found)
    assert 0 < found[2] < 2.56
    assert refutes_gaussian(1000, 1000, 900, 0.9 * found[2])
    assert not refutes_gaussian(1000, 1000, 900, 1.1 * found[2])


def test_without_noise_the_bound_grows_with_the_canaries():
    found = []
    for count in (40, 400, 4000):
        included = np.arange(count) % 2 == 0
        found.append(audit(included.astype(float), included, DELTA))
    assert found[0].epsilon < found[1].epsilon - 1 < found[2].epsilon - 2
    assert found[2].epsilon > 4.9
    assert found[2].gaussian > 7


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_epsilon_of_two_gaussians_is_the_accountant_s(noise):
    found = gaussian_epsilon(0.0, 1.0, 1 / noise, 1.0, DELTA)
    assert found == pytest.approx(epsilon_of([Event(noise)], DELTA, "pld"), rel=2e-3)


def test_gaussians_of_unlike_deviations_differ_although_their_means_do_not():
    assert gaussian_epsilon(0.0, 1.0, 0.0, 1.0, DELTA) == 0
    assert gaussian_epsilon(0.0, 1.0, 0.0, 2.0, DELTA) > 1
    assert gaussian_epsilon(0.0, 1.0, 0.0, 2.0, DELTA) == gaussian_epsilon(
        0.0, 2.0, 0.0, 1.0, DELTA
    )


def test_what_has_no_spread_is_apart_or_the_same():
    assert gaussian_epsilon(0.0, 0.0, 1.0, 0.0, DELTA) == LARGEST
    assert gaussian_epsilon(1.0, 0.0, 1.0, 0.0, DELTA) == 0
    assert gaussian_epsilon(0.0, 1.0, 1.0, 0.0, DELTA) == LARGEST


def test_cosines_of_nothing_are_nothing():
    directions = np.eye(3)
    assert cosines(directions, np.zeros(3)).tolist() == [0, 0, 0]
    assert cosines(directions, np.array([0.0, 3.0, 4.0])).tolist() == [0, 0.6, 0.8]
