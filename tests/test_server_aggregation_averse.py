"""Conflict-averse and task-aware combination, with numbers that can be checked in the head."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from common.errors import ConfigError
from server.aggregation.box_qp import shortest_near
from server.aggregation.conflicts import AGGREGATORS, AverseOptions, averse_weights, products
from tests.updates import experiment_for, rule_for, updates_of

NAMES = list(AGGREGATORS)
# The others promise it under conditions of their own, such as a large enough c or epsilon.
NEVER_HARMS = ["mgda", "upgrad", "dualproj", "imtl-g", "nash-mtl", "fairgrad"]
CONFLICT = np.array([[8.0, 0.1, 0.0], [-1.0, 1.0, 0.0], [0.1, 0.2, 1.0]], np.float32)


def weigh(name, steps, shares=None, normalise=False, key=0, notes=None, **options):
    steps = np.array(steps, np.float32)
    shares = np.full(len(steps), 1 / len(steps)) if shares is None else np.array(shares)
    notes, given = [] if notes is None else notes, AverseOptions(**options)
    return averse_weights(
        name, products(steps), shares, given, key, normalise=normalise, notes=notes
    )


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_one_update_sent_by_all_comes_back(name, normalise):
    weights = weigh(name, [[3.0, -4.0, 1.0]] * 4, [0.1, 0.2, 0.3, 0.4], normalise)
    assert weights.sum() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_updates_of_zero_leave_the_trunk_alone(name):
    moved = rule_for("task-aware", across=name).combine(updates_of([[0.0, 0.0]] * 3, before=7))
    np.testing.assert_array_equal(moved, [7, 7])


@pytest.mark.parametrize("name", NEVER_HARMS)
def test_the_step_harms_nobody(name):
    gains = CONFLICT @ (weigh(name, CONFLICT) @ CONFLICT)
    assert (gains > -1e-3 * gains.max()).all(), gains  # solvers round


def test_the_mean_harms_where_they_do_not():
    assert (CONFLICT @ (weigh("mean", CONFLICT) @ CONFLICT)).min() < 0


@pytest.mark.parametrize("name", NAMES)
def test_length_does_not_count_where_updates_are_normalised(name):
    near = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    far = near * np.array([[1000.0], [1.0]], np.float32)
    step, same = (weigh(name, s, normalise=True) @ s for s in (far, near))
    np.testing.assert_allclose(step / np.linalg.norm(step), same / np.linalg.norm(same), rtol=1e-2)


def test_opposite_updates_cancel_in_mgda_and_not_in_the_mean():
    opposite = [[2.0, 0.0], [-1.0, 0.0]]
    np.testing.assert_allclose(weigh("mgda", opposite), [1 / 3, 2 / 3], atol=1e-4)
    # Normalised to the median length 1.5: half of 1.5 and half of -1.5.
    np.testing.assert_allclose(weigh("mgda", opposite, normalise=True), [0.375, 0.75], atol=1e-4)


def test_weights_of_fedmgda_stay_within_epsilon_of_the_shares():
    weights = weigh("fedmgda+", [[1.0], [-1.0]], [0.9, 0.1], epsilon=0.15)
    np.testing.assert_allclose(weights, [0.75, 0.25])  # MGDA would take 0.5 each


def test_mgda_is_at_least_as_short_as_torchjds():
    from torchjd.aggregation import MGDA

    steps = np.random.default_rng(0).normal(size=(6, 9)) + 0.3
    peer = MGDA(epsilon=1e-9, max_iters=1000)(torch.from_numpy(steps)).norm().item()
    assert np.linalg.norm(weigh("mgda", steps) @ steps) == pytest.approx(peer, rel=0.01)
    assert np.linalg.norm(weigh("mgda", steps) @ steps) <= peer + 1e-6
    np.testing.assert_allclose(weigh("fedmgda+", steps, epsilon=1), weigh("mgda", steps), atol=1e-5)


def test_the_small_programme_is_solved():
    rng = np.random.default_rng(4)
    for size in (2, 5, 12):
        vectors = rng.normal(size=(size, 7))
        gram, shares = vectors @ vectors.T, rng.dirichlet(np.ones(size))
        found = shortest_near(gram, shares, 0.2)
        peer = minimize(
            lambda w, g=gram: w @ g @ w,
            shares,
            jac=lambda w, g=gram: 2 * g @ w,
            bounds=[(max(0, s - 0.2), min(1, s + 0.2)) for s in shares],
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-12, "maxiter": 500},
        )
        assert found @ gram @ found <= peer.fun + 1e-7
        assert found.sum() == pytest.approx(1)
        assert (abs(found - shares) <= 0.2 + 1e-12).all()
        assert (found >= 0).all()


def test_one_client_steps_as_it_did():
    moved = rule_for("conflict-averse").combine(updates_of([[2.0, 1.0]], before=1))
    np.testing.assert_allclose(moved, [3, 2])


def test_the_server_takes_a_part_of_the_step():
    rule = rule_for("conflict-averse", server_lr=0.5)
    np.testing.assert_allclose(rule.combine(updates_of([[2.0, 1.0]] * 2, before=1)), [2, 1.5])


def test_two_opposite_clients_are_shortened_and_not_cancelled():
    # Shares 3/4 and 1/4, epsilon 0.1: weights 0.65 and 0.35 of unit updates, times the median 1.
    rule = rule_for("conflict-averse")
    moved = rule.combine(updates_of([[1.0, 0.0], [-1.0, 0.0]], weights=[3, 1]))
    np.testing.assert_allclose(moved, [0.3, 0], atol=1e-6)


def test_random_aggregators_draw_by_seed_and_round():
    steps = np.random.default_rng(1).normal(size=(5, 4)).tolist()
    rule = rule_for("conflict-averse", aggregator="pcgrad")
    once, again = (rule.combine(updates_of(steps, round=1)) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    others = [rule.combine(updates_of(steps, round=number)) for number in range(2, 8)]
    assert any(not np.array_equal(once, other) for other in others)


def test_a_failing_solver_leaves_the_mean_and_says_so(monkeypatch):
    import torchjd.aggregation as aggregation

    def fail(**options):
        raise ValueError("no")

    monkeypatch.setattr(aggregation, "IMTLG", fail)
    notes = []
    found = weigh("imtl-g", [[1.0], [2.0]], [0.25, 0.75], notes=notes)
    np.testing.assert_allclose(found, [0.25, 0.75])
    assert notes == [
        "the solver of aggregator 'imtl-g' failed (ValueError); the mean was taken in its place"
    ]
    for strategy, option in (("conflict-averse", "aggregator"), ("task-aware", "across")):
        rule = rule_for(strategy, **{option: "imtl-g"})
        rule.combine(updates_of([[1.0], [2.0]], labelled=[[1, 0, 0], [0, 1, 0]]))
        assert rule.notes == notes


def test_a_rare_task_counts_as_much_as_a_common_one():
    # digit is held by clients 0 to 2 and moves by 1, 2, 3 (mean 2); ink by client 3 alone.
    labelled = [[10, 0, 0], [10, 0, 0], [10, 0, 0], [0, 0, 5]]
    steps = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 8.0]]
    moved = rule_for("task-aware").combine(updates_of(steps, labelled=labelled))
    np.testing.assert_allclose(moved, [1, 4])  # half of (2, 0) and half of (0, 8)


def test_within_a_task_clients_count_by_its_labels():
    labelled = [[30, 0, 0], [10, 0, 0]]
    steps = [[0.0], [4.0]]
    rule = rule_for("task-aware")
    np.testing.assert_allclose(rule.combine(updates_of(steps, labelled=labelled)), [1])


def test_a_client_counts_for_every_task_it_holds():
    # digit: clients 0 and 1, mean 3; parity: client 1, 4; ink: client 2, 11.
    labelled = [[10, 0, 0], [10, 20, 0], [0, 0, 1]]
    moved = rule_for("task-aware").combine(updates_of([[2.0], [4.0], [11.0]], labelled=labelled))
    np.testing.assert_allclose(moved, [6])


def test_parts_of_a_task_follow_its_holders_alone():
    columns = {"trunk.w": slice(0, 1), "trunk.task-ink.w": slice(1, 2)}
    labelled = [[10, 0, 0], [0, 0, 5]]
    moved = rule_for("task-aware").combine(
        updates_of([[2.0, 100.0], [4.0, 6.0]], labelled=labelled, columns=columns)
    )
    np.testing.assert_allclose(moved, [3, 6])


@pytest.mark.parametrize("strategy", ["conflict-averse", "task-aware"])
def test_running_statistics_are_averaged_by_shares(strategy):
    columns = {"trunk.w": slice(0, 1), "trunk.1.norm_variance": slice(1, 2)}
    updates = updates_of([[2.0, 4.0], [-1.0, 0.0]], weights=[3, 1], before=1, columns=columns)
    moved = rule_for(strategy, server_lr=0.1).combine(updates)
    np.testing.assert_allclose(moved[1], 4)  # 1 + 3/4 of 4


def test_tasks_that_conflict_are_reconciled_by_the_aggregator():
    # |a (1, 0) + (1 - a) (-1, 1)| is least at a = 3/5.
    labelled = [[10, 0, 0], [0, 0, 10]]
    steps = [[1.0, 0.0], [-1.0, 1.0]]
    moved = rule_for("task-aware", across="mgda").combine(updates_of(steps, labelled=labelled))
    np.testing.assert_allclose(moved, [0.2, 0.4], atol=1e-3)


@pytest.mark.parametrize(
    ("strategy", "options", "problem"),
    [
        ("conflict-averse", {"aggregator": "mgda", "epsilon": 0.3}, "epsilon is for aggregator"),
        ("conflict-averse", {"c": 0.3}, "c is for aggregator 'cagrad'"),
        ("conflict-averse", {"server_lr": 0}, "server-lr"),
        ("task-aware", {"c": 0.3}, "c is for across 'cagrad'"),
        ("task-aware", {"across": "worst"}, "across"),
    ],
)
def test_options_that_would_change_nothing_are_refused(strategy, options, problem):
    with pytest.raises(ConfigError, match=problem):
        experiment_for(strategy, "digits", options)


def test_weights_of_clients_are_refused_where_all_count_alike():
    with pytest.raises(ConfigError, match=r"federation\.weight-by is for"):
        experiment_for(
            "conflict-averse", "digits", {"aggregator": "mgda"}, "federation.weight-by=uniform"
        )
