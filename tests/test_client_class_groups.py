"""Batches balanced over classes: each class in equal share, an epoch as long as ever."""

import numpy as np
import pytest
import torch

from client.batches import epoch_orders, row_patterns, shuffle_key
from client.class_groups import ClassGroups, group_classes
from common.dataset import ClientData, Rows
from common.errors import ConfigError
from common.experiment_file import load_experiment
from tests.conftest import make_experiment, make_rows
from tests.test_client_cohort import train_one_by_one_with

KINDS = {"kind": "multiclass", "flag": "binary", "size": "regression"}


def rows_with(**targets) -> Rows:
    """Rows that carry these labels; None is no label."""
    count = len(next(iter(targets.values())))
    made = {task: torch.tensor([v or 0 for v in values]) for task, values in targets.items()}
    masks = {task: torch.tensor([v is not None for v in vs]) for task, vs in targets.items()}
    return Rows({"x": torch.zeros(count, 1)}, made, masks)


def rare(rows: int, positives: int) -> Rows:
    return rows_with(flag=[1] * positives + [0] * (rows - positives))


def chances(rows: Rows) -> list[float]:
    """How often each row is drawn in a place of an epoch."""
    groups = group_classes(rows, KINDS)
    assert groups is not None
    sizes = np.bincount(groups.of)
    return (groups.shares / sizes)[groups.of].tolist()


def orders_of(groups: ClassGroups, epochs: int, name: str = "a") -> np.ndarray:
    """[epochs, n]."""
    keys, counts = np.array([shuffle_key(0, name)], np.uint64), np.array([len(groups.of)])
    return np.stack(
        [epoch_orders(keys, counts, [groups], "classes", 1, e)[0] for e in range(epochs)]
    )


def test_one_task_is_drawn_class_by_class():
    assert chances(rare(10, 2)) == pytest.approx([1 / 4] * 2 + [1 / 16] * 8)


def test_with_several_tasks_the_draw_begins_with_a_task():
    # flag: 1/2 over 1 and 3 rows; kind: 1/2 over 2 and 2 rows; the mean of both.
    found = chances(rows_with(flag=[1, 0, 0, 0], kind=[0, 0, 2, 2]))
    assert found == pytest.approx([3 / 8, 5 / 24, 5 / 24, 5 / 24])


def test_a_task_without_classes_counts_as_one_of_one_class():
    found = chances(rows_with(flag=[1, 0, 0, None], size=[None, None, None, 2.5]))
    assert found == pytest.approx([1 / 4, 1 / 8, 1 / 8, 1 / 2])


def test_rows_without_a_label_are_never_drawn_and_without_any_there_are_no_groups():
    assert chances(rows_with(flag=[1, 0, None])) == pytest.approx([1 / 2, 1 / 2, 0])
    assert group_classes(rows_with(flag=[None, None]), KINDS) is None


@pytest.mark.parametrize("seed", range(5))
def test_chances_add_up_to_one_whatever_the_labels(seed):
    draw = np.random.default_rng(seed)
    columns = {
        task: [None if draw.random() < 0.4 else int(draw.integers(high)) for _ in range(17)]
        for task, high in (("flag", 2), ("kind", 4), ("size", 9))
    }
    assert sum(chances(rows_with(**columns))) == pytest.approx(1.0)


def test_every_batch_holds_the_classes_in_equal_share():
    rows = rare(100, 6)
    groups = group_classes(rows, KINDS)
    for order in orders_of(groups, 5):
        assert len(order) == 100
        for batch in order.reshape(5, 20):
            assert abs(int(rows.targets["flag"][batch].sum()) - 10) <= 1
    plain = epoch_orders(
        np.array([shuffle_key(0, "a")], np.uint64), np.array([100]), [None], "none", 1, 0
    )[0]
    assert rows.targets["flag"][plain].sum() == 6  # what it would be


def test_a_rare_classes_rows_come_up_alike_and_a_common_ones_differ_from_epoch_to_epoch():
    orders = orders_of(group_classes(rare(100, 6), KINDS), 50)
    for order in orders:
        often = np.bincount(order, minlength=100)
        assert often[:6].min() >= 50 // 6
        assert often[:6].max() <= 51 // 6 + 1
        assert often[6:].max() == 1
    assert len(np.unique(orders)) == 100  # no row is left out for good


def test_the_mean_number_of_draws_is_the_chance():
    rows = rows_with(flag=[1, 1, 0, 0, 0, 0, 0, None, None], kind=[0, 1, 1, 1, None, 2, 2, 2, 2])
    orders = orders_of(group_classes(rows, KINDS), 4000)
    found = np.bincount(orders.ravel(), minlength=9) / orders.size
    np.testing.assert_allclose(found, chances(rows), atol=0.005)


def test_a_clients_order_does_not_depend_on_who_trains_beside_it():
    groups = [group_classes(rare(n, k), KINDS) for n, k in ((9, 1), (3, 1), (20, 4))]
    keys = np.array([shuffle_key(0, name) for name in "abc"], np.uint64)
    counts = np.array([9, 3, 20])
    together = epoch_orders(keys, counts, groups, "classes", 4, 1)
    for row, key, own, count in zip(together, keys, groups, counts, strict=True):
        alone = epoch_orders(key[None], count[None], [own], "classes", 4, 1)[0]
        assert row[:count].tolist() == alone.tolist()


@pytest.mark.parametrize("labels", ["all", "some"])
def test_by_hand_and_by_autograd_visit_the_same_rows(labels):
    rows = make_rows(11, 0)
    if labels == "some":
        rows.labelled["kind"] = torch.arange(11) % 3 != 1
    training = {"lr": 0.1, "batch-size": 4, "epochs": 2}
    found = {}
    for balance in ("classes", "tasks"):
        experiment = make_experiment(training={**training, "balance": balance})
        by_hand, sums = train_one_by_one_with(experiment, rows, stacked=True)
        by_autograd, expected = train_one_by_one_with(experiment, rows, stacked=False)
        torch.testing.assert_close(by_hand, by_autograd, rtol=1e-5, atol=1e-5)
        for task, numbers in expected.items():
            assert sums[task]["loss"] == pytest.approx(numbers["loss"], rel=1e-4)
        found[balance] = by_hand
    assert (found["classes"] - found["tasks"]).abs().max() > 1e-3


def test_training_rows_are_told_apart_by_what_the_experiment_balances():
    rows = make_rows(10, 0)
    experiment = make_experiment(training={"balance": "classes"})
    assert isinstance(row_patterns(rows, experiment), ClassGroups)
    assert row_patterns(rows, make_experiment()) is None  # every row has every label
    assert ClientData("a", {"train": rows}).train is rows


def test_what_has_no_classes_is_refused():
    line = (
        "training.balance 'classes' needs a multiclass or binary task, whose rows have one class "
        "each, got tasks of kind regression; remove it"
    )
    with pytest.raises(ConfigError) as caught:
        load_experiment("school", ["training.balance=classes"])
    assert line in str(caught.value)


def test_example_level_privacy_draws_rows_by_itself():
    with pytest.raises(ConfigError, match=r"training.balance is of no use .*got 'classes'"):
        load_experiment(
            "digits",
            ["training.balance=classes", "privacy.example-level.epsilon=6"],
        )
