import itertools
import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from common.errors import ConfigError
from common.privacy import accounting
from common.privacy.accounting import (
    LARGEST_LOSS,
    Event,
    epsilon_of,
    epsilons_of,
    find_noise_multiplier,
)
from common.privacy.settings import Accountant

ACCOUNTANTS: tuple[Accountant, ...] = ("rdp", "pld")
DELTA = 1e-5
MNIST = 60000

# Published before the tighter conversion from Renyi divergence (Canonne, Kamath & Steinke 2020,
# proposition 12) was common, by eps = min_a D_a + log(1/delta) / (a - 1) (Mironov 2017,
# proposition 3): noise multiplier, sampling rate, steps, epsilon at delta 1e-5.
CLASSIC = {
    # github.com/pytorch/opacus, examples/mnist_README.md, commit eb4e69a: -sr=0.004
    "opacus-mnist-sigma-0.7": (0.7, 0.004, 45 * 250, 6.86),
    "opacus-mnist-sigma-1.1": (1.1, 0.004, 60 * 250, 2.91),
    "opacus-mnist-sigma-1.3": (1.3, 0.004, 15 * 250, 1.16),
    "opacus-mnist-one-epoch": (1.3, 0.004, 240, 0.71),
    # the same page, commit 0698adf, and TF-Privacy's first tutorial
    # (compute_dp_sgd_privacy.py --N=60000 --batch_size=256 --noise_multiplier=1.1 --epochs=60)
    "tf-privacy-mnist-1.1": (1.1, 256 / MNIST, 60 * MNIST // 256, 3.01),
    "tf-privacy-mnist-1.3": (1.3, 256 / MNIST, 15 * MNIST // 256, 1.19),
    "tf-privacy-mnist-0.7": (0.7, 256 / MNIST, 45 * MNIST // 256, 7.10),
    # github.com/tensorflow/privacy, tutorials/README.md, commit 047e1ee: "Select Parameters"
    "tf-privacy-mnist-1.12": (1.12, 256 / MNIST, 60 * MNIST // 256, 2.92),
    "tf-privacy-mnist-1.2": (1.2, 256 / MNIST, 10 * MNIST // 256, 1.20),
}

# github.com/tensorflow/privacy, compute_dp_sgd_privacy_lib_test.py: 10,000 examples, 64 a batch,
# 5 epochs, noise multiplier 2 with microbatches, which count as half of it; delta 1e-6.
STATEMENTS: list[tuple[Accountant, Event, float]] = [
    ("rdp", Event(1.0, 1.0, 5), 13.376),
    ("rdp", Event(1.0, 64 / 10000, math.ceil(5 * 10000 / 64)), 1.616),
    ("pld", Event(1.0, 1.0, 5), 12.595),
    ("pld", Event(1.0, 64 / 10000, math.ceil(5 * 10000 / 64)), 1.199),
]


@pytest.mark.parametrize("name", CLASSIC)
def test_divergences_give_the_published_figures(name: str) -> None:
    noise, sampling, steps, published = CLASSIC[name]
    orders = np.array(accounting._orders())
    classic = accounting._rdp(noise, sampling, accounting._orders()) * steps + math.log(
        1 / DELTA
    ) / (orders - 1)
    assert classic.min() == pytest.approx(published, abs=0.006)  # two digits


@pytest.mark.parametrize("name", CLASSIC)
def test_todays_epsilon_is_below_the_published_one(name: str) -> None:
    noise, sampling, steps, published = CLASSIC[name]
    assert 0.6 * published < epsilon_of([Event(noise, sampling, steps)], DELTA) < published


@pytest.mark.parametrize(("accountant", "event", "published"), STATEMENTS)
def test_epsilon_is_that_of_tensorflow_privacys_statement(
    accountant: Accountant, event: Event, published: float
) -> None:
    assert epsilon_of([event], 1e-6, accountant) == pytest.approx(published, abs=0.0006)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_a_composition_costs_what_dp_accounting_says(accountant: Accountant) -> None:
    theirs = RdpAccountant() if accountant == "rdp" else PLDAccountant()
    theirs.compose(dp_event.PoissonSampledDpEvent(0.1, dp_event.GaussianDpEvent(1.5)), 30)
    theirs.compose(dp_event.GaussianDpEvent(8.0), 7)
    ours = epsilon_of([Event(1.5, 0.1, 30), Event(8.0, 1.0, 7)], DELTA, accountant)
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-9)


@pytest.mark.parametrize("name", ["tf-privacy-mnist-1.1", "opacus-mnist-sigma-1.3"])
def test_pld_is_tighter_than_rdp(name: str) -> None:
    noise, sampling, steps, _ = CLASSIC[name]
    by = {a: epsilon_of([Event(noise, sampling, steps)], DELTA, a) for a in ACCOUNTANTS}
    assert by["pld"] < by["rdp"]


def test_a_loss_that_no_grid_holds_is_told_by_rdp() -> None:
    """At 1e-4 a step, a loss of 55,000 took all of the machine's memory."""
    event = Event(0.01, 1.0, 10)
    assert epsilon_of([event], DELTA, "pld") == epsilon_of([event], DELTA, "rdp") > LARGEST_LOSS


@pytest.mark.parametrize("accountant", ["rdp", pytest.param("pld", marks=pytest.mark.slow)])
def test_less_noise_more_rounds_larger_samples_smaller_delta_cost_more(
    accountant: Accountant,
) -> None:
    def cost(noise: float, sampling: float, count: int, delta: float) -> float:
        return epsilon_of([Event(noise, sampling, count)], delta, accountant)

    for cheap, dear in itertools.pairwise(
        [
            cost(2.0, 0.1, 10, 1e-5),
            cost(1.5, 0.1, 10, 1e-5),
            cost(1.5, 0.2, 10, 1e-5),
            cost(1.5, 0.2, 20, 1e-5),
            cost(1.5, 0.2, 20, 1e-7),
            cost(1.5, 1.0, 20, 1e-7),
        ]
    ):
        assert cheap < dear


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_events_in_any_order_and_portion_cost_the_same(accountant: Accountant) -> None:
    once = epsilon_of([Event(2.0, 1.0, 5), Event(3.0, 0.5, 4)], DELTA, accountant)
    split = [Event(3.0, 0.5, 1), Event(2.0, 1.0, 2), Event(3.0, 0.5, 3), Event(2.0, 1.0, 3)]
    assert epsilon_of(split, DELTA, accountant) == pytest.approx(once)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
@pytest.mark.parametrize("nothing", [[], [Event(1.0, 1.0, 0)], [Event(1.0, 0.0, 9)]])
def test_what_was_not_released_costs_nothing(nothing: list[Event], accountant: Accountant) -> None:
    assert epsilon_of(nothing, DELTA, accountant) == 0


@pytest.mark.parametrize(
    ("epsilon", "accountant"),
    [
        (0.5, "rdp"),
        (2.0, "rdp"),
        (8.0, "rdp"),
        pytest.param(2.0, "pld", marks=pytest.mark.slow),
    ],
)
def test_the_noise_that_is_found_is_the_least_that_keeps_the_budget(
    epsilon: float, accountant: Accountant
) -> None:
    noise = find_noise_multiplier(epsilon, DELTA, [Event(1.0, 0.2, 20)], accountant=accountant)
    assert epsilon_of([Event(noise, 0.2, 20)], DELTA, accountant) <= epsilon
    assert epsilon_of([Event(noise * 0.999, 0.2, 20)], DELTA, accountant) > epsilon


def test_finding_the_noise_undoes_the_epsilon() -> None:
    spent = epsilon_of([Event(1.234, 0.1, 50)], DELTA)
    assert find_noise_multiplier(spent, DELTA, [Event(9.9, 0.1, 50)]) == pytest.approx(
        1.234, rel=2e-4
    )


@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1, 0.9])
def test_many_epsilons_at_once_are_those_of_each(delta: float) -> None:
    releases = [
        [],
        [Event(2.0, 1.0, 0)],
        [Event(1e4)],
        [Event(2.0)],
        [Event(0.3, 0.5, 100)],
        [Event(1.5, 0.1, 30), Event(8.0, 1.0, 7)],
    ]
    each = [epsilon_of(events, delta) for events in releases]
    np.testing.assert_allclose(epsilons_of(releases, delta), each, rtol=1e-12)


def test_what_is_released_beside_leaves_less_for_the_rest() -> None:
    beside = [Event(10.0, 1.0, 10)]
    alone = find_noise_multiplier(2.0, DELTA, [Event(1.0, 1.0, 10)])
    both = find_noise_multiplier(2.0, DELTA, [Event(1.0, 1.0, 10)], beside=beside)
    assert both > alone
    assert epsilon_of([Event(both, 1.0, 10), *beside], DELTA) <= 2.0


def test_a_budget_that_is_spent_beside_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no noise keeps .* within epsilon 0\.1"):
        find_noise_multiplier(0.1, DELTA, [Event(1.0, 1.0, 10)], beside=[Event(1.0)])
