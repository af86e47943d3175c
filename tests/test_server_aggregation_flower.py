"""Flower's strategies as rules: the papers' arithmetic on numbers to be checked in the head."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Bulyan

from common.errors import ConfigError
from server.aggregation.flower import Answer
from tests.updates import experiment_for, rule_for, updates_of


def after(strategy, steps, rounds=1, losses=None, weights=None, before=0.0, **options):
    """The trunks after each of some rounds that bring the same updates."""
    rule, found = rule_for(strategy, **options), []
    for number in range(1, rounds + 1):
        updates = updates_of(steps, round=number, weights=weights, before=before)
        if losses is not None:
            updates = replace(updates, losses=np.array(losses))
        before = rule.combine(updates)
        found.append(before)
    return np.array(found)


def test_fedavgm_adds_half_of_the_step_before():
    # v = 1, then 0.5 * 1 + 1 = 1.5; w = 1, then 2.5.
    assert after("fedavgm", [[1.0]], 2, server_momentum=0.5).tolist() == [[1.0], [2.5]]


def test_fedavgm_scales_the_step_by_the_servers_rate():
    options = {"server_learning_rate": 0.5, "server_momentum": 0.5}
    # v = 1 and 1.5 as above, each times 0.5.
    assert after("fedavgm", [[1.0]], 2, **options).tolist() == [[0.5], [1.25]]


def test_fedavgm_follows_the_trunk_that_was_sent_and_not_its_own():
    rule = rule_for("fedavgm", server_momentum=0.5)
    rule.combine(updates_of([[1.0]]))
    assert rule.combine(updates_of([[1.0]], round=2, before=10.0)).tolist() == [11.5]


def test_fedadagrad_divides_by_the_root_of_all_squares():
    # d = 3: v = 9, step 0.5 * 3 / (3 + 1); then v = 18.
    found = after("fedadagrad", [[3.0]], 2, eta=0.5, tau=1.0)
    second = 0.375 + 0.5 * 3 / (np.sqrt(18) + 1)
    np.testing.assert_allclose(found[:, 0], [0.375, second], rtol=1e-6)


def test_fedyogi_moves_its_squares_by_a_share_of_the_new_one():
    # d = 2: m = 0.5 * 2 = 1, v = 0.25 * 4 = 1 (0 is below 4); step 3 * 1 / (1 + 1).
    # Then m = 0.5 + 1 = 1.5 and v = 1 + 0.25 * 4 = 2 (1 is below 4).
    found = after("fedyogi", [[2.0]], 2, eta=3.0, beta_1=0.5, beta_2=0.75, tau=1.0)
    np.testing.assert_allclose(found[:, 0], [1.5, 1.5 + 4.5 / (np.sqrt(2) + 1)], rtol=1e-6)


def test_fedadam_is_adam_with_flowers_correction():
    # d = 2: m = 1, v = 0.25 * 4 = 1; eta_1 = eta sqrt(1 - 0.75^2) / (1 - 0.5^2).
    found = after("fedadam", [[2.0]], eta=3.0, beta_1=0.5, beta_2=0.75, tau=1.0)
    rate = 3.0 * np.sqrt(1 - 0.75**2) / (1 - 0.5**2)
    np.testing.assert_allclose(found[0, 0], rate * 1 / (1 + 1), rtol=1e-6)


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_servers_optimisers_weigh_clients_exactly(strategy):
    # Shares of 1/4 and 3/4 of 4 and 0 are a mean of 1, bit for bit that of one client.
    by_two = after(strategy, [[4.0], [0.0]], weights=[1, 3])
    np.testing.assert_array_equal(by_two, after(strategy, [[1.0]]))


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "qfedavg"])
def test_running_statistics_are_averaged_and_no_variance_is_negative(strategy):
    updates = updates_of(
        [[-0.5, 1.0], [-0.7, 1.0]],
        before=[1.0, 0.0],
        columns={"trunk.1.norm_variance": slice(0, 1), "trunk.w": slice(1, 2)},
    )
    rule = rule_for(strategy)
    for number in (1, 2):
        found = rule.combine(replace(updates, round=number, losses=np.ones(2)))
        np.testing.assert_allclose(found[0], 0.4, rtol=1e-6)


def test_a_step_that_is_no_number_is_not_remembered():
    rule = rule_for("fedadagrad")
    rule.combine(updates_of([[1.0]]))
    kept = {name: array.copy() for name, array in rule.state().items()}
    with np.errstate(all="ignore"):
        assert not np.isfinite(rule.combine(updates_of([[np.inf]], round=2))).all()
    assert {name: array.tolist() for name, array in rule.state().items()} == {
        name: array.tolist() for name, array in kept.items()
    }
    assert np.isfinite(rule.combine(updates_of([[1.0]], round=3))).all()


@pytest.mark.parametrize("strategy", ["fedadam", "fedyogi", "fedadagrad"])
def test_one_huge_update_does_not_end_a_servers_optimiser(strategy):
    """Its square is infinite, though the step that is divided by its root is not."""
    rule = rule_for(strategy)
    first = rule.combine(updates_of([[1.0], [1.0]]))
    with np.errstate(all="ignore"):
        assert not np.isfinite(rule.combine(updates_of([[1.0], [1e30]], before=first))).all()
    assert all(np.isfinite(array).all() for array in rule.state().values())
    after_it = rule.combine(updates_of([[1.0], [1.0]], before=first))
    assert after_it[0] - first[0] > 1e-3


def test_qfedavg_equals_its_formula():
    # L = 2, q = 1. Client 1: g = -2 * 1, F = 3, D = -6, h = 1 * |g|^2 + 2 * 3 = 10.
    # Client 2: g = 0, F = 1, D = 0, h = 0 + 2 = 2. Step 6 / 12.
    found = after("qfedavg", [[1.0], [0.0]], losses=[3.0, 1.0], q=1.0, client_learning_rate=0.5)
    np.testing.assert_allclose(found[0], [0.5], rtol=1e-6)


def test_qfedavg_without_fairness_is_the_plain_mean():
    found = after("qfedavg", [[1.0], [4.0]], losses=[3.0, 1.0], weights=[9, 1], q=0.0)
    np.testing.assert_allclose(found[0], [2.5], rtol=1e-6)


def test_qfedavg_takes_the_clients_own_rate():
    rates = [after("qfedavg", [[1.0]], losses=[1.0], client_learning_rate=r) for r in (0.05, 0.1)]
    own = after("qfedavg", [[1.0]], losses=[1.0])
    rate = experiment_for("qfedavg").training.lr
    same = after("qfedavg", [[1.0]], losses=[1.0], client_learning_rate=rate)
    assert own.tolist() == same.tolist()
    assert rates[0].tolist() != rates[1].tolist()


@pytest.mark.parametrize("no_loss", [np.nan, -1.0])
def test_qfedavg_leaves_out_who_reports_no_loss(no_loss):
    found = after("qfedavg", [[1.0], [50.0]], losses=[3.0, no_loss])
    np.testing.assert_allclose(found, after("qfedavg", [[1.0]], losses=[3.0]))


def test_qfedavg_without_any_loss_leaves_the_trunk_and_says_so():
    rule = rule_for("qfedavg")
    silent = replace(updates_of([[1.0], [50.0]], before=4.0), losses=np.full(2, np.nan))
    assert rule.combine(silent).tolist() == [4.0]
    assert "no client reported a training loss" in rule.notes[0]


def test_the_median_is_that_of_every_number():
    steps = [[0, 9], [1, -50], [70, 10]]
    assert after("median", steps, weights=[1, 1, 98]).tolist() == [[1.0, 9.0]]
    assert after("median", [[0], [1], [2], [90]]).tolist() == [[1.5]]


def test_the_trimmed_mean_cuts_its_share_at_either_end():
    steps = [[-500], [1], [2], [6], [500]]  # a fifth of five is one: 1, 2 and 6 stay
    assert after("trimmed-mean", steps, beta=0.2).tolist() == [[3.0]]
    assert after("trimmed-mean", steps, beta=0.4).tolist() == [[2.0]]  # only 2 stays


def test_krum_takes_the_trunk_with_the_nearest_neighbours():
    # K = 5, f = 1: two nearest each. Squared distances: 0 -> 1 + 9, 1 -> 1 + 4, 3 -> 4 + 4,
    # 5 -> 4 + 16, 100 far. So 1 is chosen.
    assert after("krum", [[0], [1], [3], [5], [100]], num_malicious_nodes=1).tolist() == [[1.0]]


def test_krum_sees_small_updates_of_a_large_trunk():
    steps = [[0], [0.25], [0.75], [1.25], [25]]
    found = after("krum", steps, num_malicious_nodes=1, before=1000.0)
    assert found.tolist() == [[1000.25]]


def test_multikrum_averages_all_but_the_hostile():
    steps = [[0], [1], [3], [5], [100]]  # scores 10, 5, 8, 20 and far
    assert after("multikrum", steps, num_malicious_nodes=1).tolist() == [[2.25]]
    fewer = after("multikrum", steps, num_malicious_nodes=1, num_nodes_to_select=2)
    assert fewer.tolist() == [[2.0]]  # 1 and 3


def test_bulyan_averages_what_is_nearest_the_median_of_those_chosen():
    # K = 7, f = 1: five chosen by their four nearest, the three nearest to their median averaged.
    steps = [[0], [1], [2], [3], [4], [50], [-80]]
    assert after("bulyan", steps).tolist() == [[2.0]]


def test_one_flat_array_chooses_as_many_arrays_would():
    """Distances are over all arrays together, so where one array ends does not matter."""
    steps = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    arrays = [
        ArrayRecord({"a": Array(row[:4].reshape(2, 2)), "b": Array(row[4:])}) for row in steps
    ]
    answers = [
        Answer(RecordDict({"arrays": r, "metrics": MetricRecord({"num-examples": 1})}))
        for r in arrays
    ]
    found, _ = Bulyan(num_malicious_nodes=1).aggregate_train(1, answers)
    flat = np.concatenate([found[name].numpy().ravel() for name in ("a", "b")])
    np.testing.assert_allclose(after("bulyan", steps.tolist())[0], flat, rtol=1e-5)


ENOUGH = {
    # f = 3 asks for 15 replies: beside m that were faulty, 4 (3 - m) + 3 are enough.
    "bulyan": ({"num_malicious_nodes": 3}, [15, 11, 7, 3, 15]),
    "krum": ({"num_malicious_nodes": 3}, [9, 7, 5, 3, 9]),
    "multikrum": ({"num_malicious_nodes": 3}, [9, 7, 5, 3, 9]),
    # A fifth of 5 or more is cut; 1 of 5 may be faulty, and 2 of 10, not of fewer.
    "trimmed-mean": ({"beta": 0.2}, [5, 4, 5, 5, 5]),
    "median": ({}, [1, 1, 1, 1, 1]),
    "fedavg": ({}, [1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("strategy", ENOUGH)
def test_faulty_replies_are_among_the_hostile_that_a_rule_withstands(strategy):
    options, enough = ENOUGH[strategy]
    rule = rule_for(strategy, **options)
    assert [rule.needed(faulty) for faulty in range(5)] == enough


@pytest.mark.parametrize(("beta", "most"), [(0.1, 40), (0.2, 40), (0.3, 40), (0.45, 40)])
def test_a_trimmed_mean_cuts_as_many_as_may_be_hostile_beside_the_faulty(beta, most):
    rule = rule_for("trimmed-mean", beta=beta)
    for faulty in range(1, most):
        for usable in range(rule.needed(faulty), most):
            may_be = int(beta * (usable + faulty))
            assert faulty > may_be or may_be - faulty <= int(beta * usable)


def test_bulyan_withstands_the_hostile_that_are_left_beside_faulty_ones():
    # f = 3 of 15; two were faulty, so of 13 one may be hostile. 13 are enough for f = 2.
    steps = [[float(k)] for k in range(12)] + [[1e6]]
    assert 4 <= after("bulyan", steps, num_malicious_nodes=3)[0, 0] <= 8


def test_enough_replies_are_combined_with_all_of_f():
    # K = 9 is enough for f = 3, so the four nearest count: of 5, 1 + 4 + 4 + 16; of 3, 26.
    steps = [[0], [1], [3], [5], [6], [7], [100], [101], [102]]
    assert after("krum", steps, num_malicious_nodes=3).tolist() == [[5.0]]
    assert after("multikrum", steps, num_malicious_nodes=3)[0, 0] < 10


REFUSED = {
    "next to nobody is cut": ("trimmed-mean", {"beta": 1e-9}, (), "beta must be"),
    "a half is cut": ("trimmed-mean", {"beta": 0.5}, (), "beta must be"),
    "nobody is cut": ("trimmed-mean", {"beta": 0.1}, (9,), "at least 10"),
    "krum": ("krum", {"num_malicious_nodes": 2}, (6,), "at least 7"),
    "multikrum": ("multikrum", {"num_malicious_nodes": 2}, (6,), "at least 7"),
    "more than there are": ("multikrum", {"num_nodes_to_select": 9}, (8,), "at least 10"),
    "bulyan": ("bulyan", {"num_malicious_nodes": 1}, (6,), "at least 7"),
    "bulyan of nobody": ("bulyan", {"num_malicious_nodes": 0}, (), "num-malicious-nodes must be"),
    "unfair": ("qfedavg", {"q": -0.1}, (), "q must be"),
    "only the mean": ("fedavgm", {"server_momentum": 0.0}, (), "is federation.strategy 'fedavg'"),
    "what Flower does not use": ("fedadam", {"eta_l": 0.1}, (), "eta-l"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_a_line(case):
    strategy, options, asked, problem = REFUSED[case]
    more = [f"federation.clients-per-round={count}" for count in asked]
    with pytest.raises(ConfigError, match=problem) as error:
        experiment_for(strategy, "digits", options, *more)
    assert "strategy-options" in str(error.value)


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multikrum", "bulyan"])
def test_control_variates_would_be_a_way_round_a_robust_rule(strategy):
    sgd = ("training.optimiser=sgd", "training.momentum=0.0")
    with pytest.raises(ConfigError, match=f"'{strategy}'.*'scaffold'.*averaged unprotected"):
        experiment_for(strategy, "digits", {}, "federation.algorithm=scaffold", *sgd)


@pytest.mark.parametrize("strategy", ["median", "trimmed-mean", "krum", "multikrum", "bulyan"])
def test_shared_memory_of_losses_would_be_a_way_round_a_robust_rule(strategy):
    learned = "loss.weighting=uncertainty"
    with pytest.raises(ConfigError, match=r"loss\.scope must be 'local'.*averaged unprotected"):
        experiment_for(strategy, "digits", {}, learned)
    experiment_for(strategy, "digits", {}, learned, "loss.scope=local")


@pytest.mark.parametrize(
    "strategy", ["qfedavg", "median", "trimmed-mean", "krum", "multikrum", "bulyan"]
)
@pytest.mark.parametrize("weight_by", ["uniform", "labelled"])
def test_weights_that_a_rule_does_not_use_are_refused(strategy, weight_by):
    with pytest.raises(ConfigError, match=f"weight-by must be left out.*'{strategy}'.*remove it"):
        experiment_for(strategy, "digits", {}, f"federation.weight-by={weight_by}")


def test_flower_says_nothing_of_its_own_in_the_log(caplog):
    caplog.set_level("INFO", logger="flwr")
    after("fedadam", [[1.0]])
    assert not [r for r in caplog.records if r.name.startswith("flwr")]
