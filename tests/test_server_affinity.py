"""How alike updates are: counted by hand, over rounds, and after a restart."""

import numpy as np
import pytest

from server.affinity import MOST_CLIENTS, Affinity
from tests.updates import updates_of

TASKS = ["digit", "parity", "ink"]
ONE, OTHER, DIAGONAL = [2.0, 0.0], [0.0, 5.0], [3.0, 3.0]
HALF = np.sqrt(0.5)


def matrix(part):
    return np.array(part["matrix"], dtype=float)  # None becomes NaN


def test_cosines_between_clients():
    affinity = Affinity(TASKS, 10)
    affinity.observe(updates_of([ONE, DIAGONAL, OTHER], clients=["c", "a", "b"]))
    found = affinity.figures()
    assert found["rounds"] == 1
    assert found["clients"]["names"] == ["a", "b", "c"]
    expected = [[np.nan, HALF, HALF], [HALF, np.nan, 0], [HALF, 0, np.nan]]
    np.testing.assert_allclose(matrix(found["clients"]), expected, atol=1e-6)


def test_cosines_between_tasks_are_means_over_pairs_of_different_clients():
    affinity = Affinity(TASKS, 10)
    held = [[9, 0, 0], [9, 9, 0], [0, 9, 0]]
    affinity.observe(updates_of([ONE, DIAGONAL, OTHER], labelled=held))
    # digit: {0, 1}; parity: {1, 2}; pairs of both: (0,1), (0,2), (1,2), not (1,1).
    across = (HALF + 0 + HALF) / 3
    expected = [[HALF, across, np.nan], [across, HALF, np.nan], [np.nan] * 3]
    np.testing.assert_allclose(matrix(affinity.figures()["tasks"]), expected, atol=1e-6)


def test_rounds_are_averaged_pair_by_pair():
    affinity = Affinity(TASKS, 1)
    affinity.observe(updates_of([ONE, ONE], round=1, clients=["a", "b"]))
    affinity.observe(updates_of([ONE, OTHER, ONE], round=2, clients=["a", "b", "c"]))
    found = matrix(affinity.figures()["clients"])
    assert found[0, 1] == pytest.approx(0.5)  # 1, then 0
    assert found[0, 2] == pytest.approx(1.0)  # met once
    assert found[1, 2] == pytest.approx(0.0)


def test_pairs_that_never_met_are_unknown():
    affinity = Affinity(TASKS, 1)
    affinity.observe(updates_of([ONE, ONE], round=1, clients=["a", "b"]))
    affinity.observe(updates_of([ONE, ONE], round=2, clients=["a", "c"]))
    assert affinity.figures()["clients"]["matrix"][1][2] is None


@pytest.mark.parametrize(
    ("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [1, 3, 6]), (10, [1])]
)
def test_it_is_measured_in_round_one_and_every_nth(every, due):
    affinity = Affinity(TASKS, every)
    assert [number for number in range(1, 7) if affinity.is_due(number)] == due


def test_nothing_measured_is_nothing_to_say():
    affinity = Affinity(TASKS, 0)
    affinity.observe(updates_of([ONE, OTHER]))
    assert affinity.figures() is None
    assert affinity.state() == {}


def test_updates_of_zero_have_no_direction():
    affinity = Affinity(TASKS, 1)
    affinity.observe(updates_of([ONE, [0.0, 0.0], ONE], clients=["a", "b", "c"]))
    assert affinity.figures()["clients"]["names"] == ["a", "c"]
    np.testing.assert_allclose(matrix(affinity.figures()["tasks"]), np.ones((3, 3)))


def test_only_what_all_tasks_share_is_compared():
    columns = {
        "trunk.w": slice(0, 1),
        "trunk.task-ink.w": slice(1, 2),
        "heads.task-ink.w": slice(2, 3),
    }
    affinity = Affinity(TASKS, 1)
    affinity.observe(updates_of([[1.0, 9.0, 9.0], [1.0, -9.0, 9.0]], columns=columns))
    assert matrix(affinity.figures()["clients"])[0, 1] == pytest.approx(1)


def test_many_clients_have_a_matrix_over_tasks_alone():
    affinity = Affinity(TASKS, 1)
    affinity.observe(updates_of([ONE] * (MOST_CLIENTS + 1)))
    found = affinity.figures()
    assert found["clients"] is None
    np.testing.assert_allclose(matrix(found["tasks"]), np.ones((3, 3)), rtol=1e-5)


@pytest.mark.parametrize("clients", [5, MOST_CLIENTS + 1])
def test_a_restart_forgets_nothing(clients):
    steps = np.random.default_rng(0).normal(size=(clients, 6)).tolist()
    whole, resumed = Affinity(TASKS, 1), Affinity(TASKS, 1)
    whole.observe(updates_of(steps, round=1))
    resumed.restore(whole.state())
    for affinity in (whole, resumed):
        affinity.observe(updates_of(steps[::-1], round=2))
    assert whole.figures() == resumed.figures()


def test_a_few_columns_at_a_time_come_to_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    columns = {"trunk.a": slice(0, 5), "trunk.1.norm_mean": slice(5, 6), "trunk.b": slice(6, 17)}
    updates = updates_of(rng.normal(size=(4, 17)).tolist(), before=3, columns=columns)
    found = []
    for block in (2**18, 12, 1):
        monkeypatch.setattr("server.affinity.BLOCK", block)
        affinity = Affinity(TASKS, 1)
        affinity.observe(updates)
        found.append(matrix(affinity.figures()["clients"]))
    np.testing.assert_allclose(found[1], found[0])
    np.testing.assert_allclose(found[2], found[0])


def test_huge_updates_have_a_direction_too():
    affinity = Affinity(TASKS, 1)
    affinity.observe(updates_of([[3e38, 0.0], [3e38, 3e38]]))
    assert matrix(affinity.figures()["clients"])[0, 1] == pytest.approx(HALF)


def test_measuring_changes_no_update():
    updates = updates_of([ONE, OTHER], before=2)
    before = updates.rows.copy()
    Affinity(TASKS, 1).observe(updates)
    np.testing.assert_array_equal(updates.rows, before)
