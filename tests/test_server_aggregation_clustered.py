"""Groups of clients or tasks with a trunk each: when they split, merge, and what they remember."""

import numpy as np
import pytest

from common.errors import ConfigError
from server.aggregation.linkage import order_alike, partitions, separation
from server.aggregation.sketch import WIDTH, Sketcher, directions
from tests.updates import experiment_for, rule_for, updates_of

EAST, WEST = [3.0, 0.2, 0.0], [-1.0, 0.2, 0.0]


def run(rule, rounds, steps, **more):
    """Let clients send the same updates for some rounds, each from its own trunk."""
    for number in rounds:
        names = more.get("clients") or [f"client-{k}" for k in range(len(steps))]
        own = [rule.trunk_of(name) for name in names]
        before = np.array([np.zeros(len(steps[0])) if t is None else t for t in own], np.float32)
        common = rule.combine(updates_of(steps, round=number, before=before, **more))
    return common


def test_one_group_is_the_weighted_mean():
    rule = rule_for("clustered")
    moved = rule.combine(updates_of([[4.0, 0.0], [0.0, 8.0]], weights=[3, 1], before=1))
    np.testing.assert_allclose(moved, [4, 3])
    np.testing.assert_allclose(rule.trunk_of("client-1"), [4, 3])


def test_clients_that_pull_apart_get_a_trunk_each():
    rule = rule_for("clustered", every=2, min_clients=2)
    run(rule, [1, 2], [EAST, EAST, WEST, WEST, WEST])
    east, west = rule.trunk_of("client-0"), rule.trunk_of("client-4")
    np.testing.assert_array_equal(east, west)  # only now split: both at 2 * (3 + 3 - 3) / 5
    np.testing.assert_allclose(east, [1.2, 0.4, 0], atol=1e-6)
    common = run(rule, [3], [EAST, EAST, WEST, WEST, WEST])
    np.testing.assert_allclose(rule.trunk_of("client-1"), [4.2, 0.6, 0], atol=1e-6)
    np.testing.assert_allclose(rule.trunk_of("client-2"), [0.2, 0.6, 0], atol=1e-6)
    # For newcomers: groups by members, 2/5 of 4.2 and 3/5 of 0.2.
    np.testing.assert_allclose(common, [1.8, 0.6, 0], atol=1e-6)


def test_a_group_is_never_smaller_than_asked():
    rule = rule_for("clustered", every=1, min_clients=3)
    run(rule, range(1, 4), [EAST, EAST, WEST, WEST, WEST])
    assert len(rule.trunks) == 1


def test_a_stranger_does_not_hide_two_groups():
    rule = rule_for("clustered", every=1, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST, [0.0, 0.3, 9.0]])
    assert len(rule.trunks) == 2
    assert rule.group[0] == rule.group[1] != rule.group[2] == rule.group[3]


def test_four_groups_part_at_once():
    rule = rule_for("clustered", every=1)
    steps = np.repeat(np.eye(4), 3, axis=0) + 0.3
    run(rule, [1], steps[[0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]].tolist())
    assert rule.group.tolist() == [0, 1, 2, 3] * 3


def test_noise_alone_splits_nothing():
    rng = np.random.default_rng(0)
    rule = rule_for("clustered", every=1)
    for number in range(1, 11):
        run(rule, [number], (rng.normal(size=(20, 400)) + 0.2).tolist())
    assert len(rule.trunks) == 1


def test_groups_that_move_alike_again_are_merged():
    rule = rule_for("clustered", every=1, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    assert len(rule.trunks) == 2
    run(rule, [2], [[0.0, 1.0, 0.0]] * 4)
    assert len(rule.trunks) == 1
    np.testing.assert_allclose(rule.trunk_of("client-0"), [1, 1.2, 0], atol=1e-6)


def test_merge_one_never_merges():
    rule = rule_for("clustered", every=1, min_clients=2, merge=1)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    run(rule, [2], [[0.0, 1.0, 0.0]] * 4)
    assert len(rule.trunks) == 2


def test_clients_that_sat_out_are_remembered():
    rule = rule_for("clustered", every=2, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    run(rule, [2], [EAST, WEST], clients=["client-0", "client-2"])
    assert rule.group.tolist() == [0, 0, 1, 1]


def test_a_newcomer_joins_those_it_is_like():
    rule = rule_for("clustered", every=1, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    assert rule.trunk_of("late") is None
    run(rule, [2], [EAST, EAST, WEST, WEST, [-5.0, 0.9, 0.1]],
        clients=["client-0", "client-1", "client-2", "client-3", "late"])  # fmt: skip
    np.testing.assert_array_equal(rule.trunk_of("late"), rule.trunk_of("client-2"))


def test_tasks_that_pull_apart_part_their_clients():
    held = [[10, 0, 0], [0, 10, 0], [0, 0, 10], [0, 4, 6]] * 2
    pulls = [EAST, EAST, WEST, WEST] * 2
    rule = rule_for("clustered", by="tasks", every=1, min_clients=2)
    run(rule, [1], pulls, labelled=held)
    # The last client holds both kinds, and more labels of the third task.
    assert rule.task_group[0] == rule.task_group[1] != rule.task_group[2]
    assert rule.group.tolist() == [0, 0, 1, 1] * 2


def test_a_client_of_all_tasks_cannot_tell_them_apart():
    rule = rule_for("clustered", by="tasks", every=1, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    assert len(rule.trunks) == 1


def test_a_trunk_that_was_sent_stays_as_it_was():
    rule = rule_for("clustered")
    run(rule, [1], [EAST, EAST])
    sent = rule.trunk_of("client-0")
    before = sent.copy()
    run(rule, [2], [EAST, EAST])
    np.testing.assert_array_equal(sent, before)


def test_clients_of_a_group_are_sent_the_same_memory():
    rule = rule_for("clustered", every=1, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    places = [rule.trunk_of(f"client-{k}").ctypes.data for k in range(4)]
    assert places[0] == places[1] != places[2] == places[3]


def test_resuming_equals_never_stopping():
    rng = np.random.default_rng(3)
    steps = (rng.normal(size=(8, 1500)) + np.repeat([[1.0], [-1.0]], 4, axis=0)).tolist()
    whole = rule_for("clustered", every=2)
    run(whole, range(1, 3), steps)
    resumed = rule_for("clustered", every=2)
    resumed.restore({name: array.copy() for name, array in whole.state().items()})
    for rule in (whole, resumed):
        run(rule, range(3, 7), steps)
    assert len(whole.trunks) == 2
    for name, array in whole.state().items():
        np.testing.assert_array_equal(array, resumed.state()[name], err_msg=name)


def test_an_overflow_leaves_every_group_as_it_was():
    rule = rule_for("clustered", every=1, min_clients=2)
    run(rule, [1], [EAST, EAST, WEST, WEST])
    kept = {name: array.copy() for name, array in rule.state().items()}
    assert not np.isfinite(run(rule, [2], [[3.4e38, 0.0, 0.0]] * 5)).all()
    assert len(rule.places) == 4
    for name, array in rule.state().items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)


def test_names_of_clients_survive_the_checkpoint():
    rule = rule_for("clustered")
    run(rule, [1], [EAST, WEST], clients=["Köln", "a much longer name"])
    again = rule_for("clustered")
    again.restore(rule.state())
    np.testing.assert_array_equal(again.trunk_of("Köln"), rule.trunk_of("Köln"))
    assert list(again.groups) == ["Köln", "a much longer name"]


def test_running_statistics_say_nothing_of_direction():
    columns = {"trunk.w": slice(0, 2), "trunk.1.norm_mean": slice(2, 3)}
    rule = rule_for("clustered", every=1, min_clients=2)
    steps = [[1.0, 0.1, 50.0], [1.0, 0.2, 50.0], [1.0, 0.1, -50.0], [1.0, 0.2, -50.0]]
    run(rule, [1], steps, columns=columns)
    assert len(rule.trunks) == 1


@pytest.mark.parametrize("strategy", ["clustered", "conflict-averse"])
def test_updates_that_have_nothing_in_common_are_refused(strategy):
    with pytest.raises(ConfigError, match=r"trunk\.sharing 'soft' has no such part"):
        experiment_for(strategy, "digits", {}, "trunk.sharing=soft")


@pytest.mark.parametrize("strategy", ["clustered", "conflict-averse"])
def test_a_trunk_without_layers_is_nothing_to_compare(strategy):
    bare = ("federation.algorithm=whole-model", "trunk.widths=[]")
    with pytest.raises(ConfigError, match=f"'{strategy}' compares .* without layers"):
        experiment_for(strategy, "digits", {}, *bare)


def test_groups_of_tasks_need_tasks():
    with pytest.raises(ConfigError, match=r"by 'tasks' needs at least 2 tasks, got 1"):
        experiment_for("clustered", "landmine", {"by": "tasks"})


@pytest.mark.parametrize("option", ["every", "split", "merge", "min_clients"])
def test_nonsense_is_refused(option):
    with pytest.raises(ConfigError, match=option.replace("_", "-")):
        experiment_for("clustered", "digits", {option: 0})


def test_sketches_keep_angles():
    rng = np.random.default_rng(1)
    common = rng.normal(size=20_000)
    rows = np.stack([common + s * rng.normal(size=20_000) for s in (0, 0.5, 1, 3)])
    units = directions(rows.astype(np.float32))
    sketches = Sketcher(20_000, seed=0).shorten(units)
    assert sketches.shape == (4, WIDTH)
    np.testing.assert_allclose(sketches @ sketches.T, units @ units.T, atol=0.1)


def test_short_rows_are_kept_whole():
    rows = np.eye(3, dtype=np.float32)
    np.testing.assert_array_equal(Sketcher(3, seed=0).shorten(rows), rows)


def test_too_few_things_have_no_parts():
    assert list(partitions(np.eye(1), 1)) == []
    assert list(partitions(np.eye(3), 2)) == []


def test_separation_is_that_of_means():
    likeness = np.array([[1, 0.8, 0.1], [0.8, 1, 0.3], [0.1, 0.3, 1]])
    assert separation(likeness, np.array([0, 0, 1])) == pytest.approx(0.6)  # 0.8 - (0.1 + 0.3) / 2
    assert separation(likeness, np.zeros(3, np.int64)) == 0


def test_order_puts_the_like_together():
    groups = np.array([0, 1, 0, 1, 0, 1])
    order = order_alike((groups[:, None] == groups).astype(float))
    assert groups[order].tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
