"""Batch order: a permutation, reproducible, balanced over tasks."""

import numpy as np
import pytest
import torch

from client import batches
from client.batches import epoch_orders, label_patterns, shuffle_key


def epoch_order(patterns, balance, seed, client, round_number=1):
    return batches.epoch_order(
        len(patterns), patterns, balance, shuffle_key(seed, client), round_number, 0
    )


@pytest.mark.parametrize("balance", ["tasks", "none"])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_order_is_a_permutation(balance, rows):
    patterns = np.arange(rows) % 3
    order = epoch_order(patterns, balance, 0, "client", 1)
    assert sorted(order.tolist()) == list(range(rows))


def test_order_depends_on_seed_and_stream_alone():
    patterns = np.zeros(50, np.int64)
    first = epoch_order(patterns, "tasks", 0, "a", 1)
    assert np.array_equal(first, epoch_order(patterns, "tasks", 0, "a", 1))
    assert not np.array_equal(first, epoch_order(patterns, "tasks", 0, "a", 2))
    assert not np.array_equal(first, epoch_order(patterns, "tasks", 1, "a", 1))


def test_every_batch_holds_its_share_of_a_rare_task():
    labelled = torch.zeros(200, dtype=torch.bool)
    labelled[:40] = True  # one row in five, all at the start
    patterns = label_patterns({"common": torch.ones(200, dtype=torch.bool), "rare": labelled})
    order = epoch_order(patterns, "tasks", 0, "x")
    shares = [labelled[order[i : i + 20]].sum().item() for i in range(0, 200, 20)]
    assert min(shares) >= 3  # 20 / 5 = 4, to within one row
    assert max(shares) <= 5
    plain = epoch_order(patterns, "none", 0, "x")
    spread = [labelled[plain[i : i + 20]].sum().item() for i in range(0, 200, 20)]
    assert max(spread) - min(spread) > max(shares) - min(shares)


def test_patterns_tell_rows_apart_by_the_tasks_they_teach():
    masks = {"a": torch.tensor([True, True, False]), "b": torch.tensor([True, False, True])}
    assert len(set(label_patterns(masks).tolist())) == 3


def test_a_clients_order_does_not_depend_on_who_trains_beside_it():
    patterns = [np.arange(n) % kinds for n, kinds in ((7, 1), (3, 2), (12, 3))]
    keys = np.array([shuffle_key(0, name) for name in "abc"], np.uint64)
    counts = np.array([len(own) for own in patterns])
    together = epoch_orders(keys, counts, patterns, "tasks", 4, 1)
    for row, key, own in zip(together, keys, patterns, strict=True):
        alone = batches.epoch_order(len(own), own, "tasks", int(key), 4, 1)
        assert row[: len(own)].tolist() == alone.tolist()
