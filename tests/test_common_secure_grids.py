"""Integers that are added securely: near the numbers they stand for, and never too large."""

import math

import numpy as np
import pytest

from common.errors import ConfigError
from common.secure_aggregation.grids import (
    Grid,
    from_words,
    join_sums,
    require_addable,
    split_sums,
    to_words,
)
from common.secure_aggregation.layout import Part, SumsLayout, UpdateLayout
from tests.conftest import make_experiment

SIZES = {"trunk.w": 4, "trunk.task-flag.w": 2}


def secure(**federation):
    settings = {"secure-aggregation": {"max-norm": 2.0}}
    return make_experiment(privacy=settings, federation=federation)


@pytest.mark.parametrize("bits", [8, 16, 20, 24])
@pytest.mark.parametrize("sign", [1, -1])
def test_as_many_clients_as_have_room_do_not_overflow_at_the_ends_of_the_range(bits, sign):
    grid = Grid(2.0, bits)
    value = grid.quantise(np.array([sign * 2.0]), np.array([0.999]))
    assert value.tolist() == [sign * grid.limit]
    total = np.zeros(1, np.uint32)
    for _ in range(grid.most_clients):
        total += to_words(value)
    assert from_words(total).tolist() == [sign * grid.limit * grid.most_clients]
    with pytest.raises(ConfigError, match="leave room for"):
        grid.require_room(grid.most_clients + 1)


def test_values_beyond_the_norm_are_cut_off():
    grid = Grid(1.0, 8)
    found = grid.quantise(np.array([1e6, -1e6, 1.0000001]), np.zeros(3))
    assert found.tolist() == [127, -127, 127]


def test_rounding_is_within_a_step_and_right_on_average():
    grid, random = Grid(1.0, 8), np.random.default_rng(0)
    values = random.uniform(-1, 1, 50)
    drawn = np.stack([grid.quantise(values, random.random(50)) for _ in range(4000)])
    errors = drawn * grid.step - values
    assert np.abs(errors).max() < grid.step
    # The deviation of a mean of 4000 is at most half a step over the root of 4000; five of them.
    assert np.abs(errors.mean(0)).max() < 5 * grid.step / 2 / math.sqrt(4000)
    assert errors.var(0).max() < 0.26 * grid.step**2


def test_nothing_is_nothing():
    assert not Grid(1.0, 20).quantise(np.zeros(100), np.full(100, 0.999)).any()


def test_sums_come_back_to_nine_digits_however_large_and_signed():
    rows = np.array([[1.5, -2.25e12, 3e-4, 7e20], [2.5, 1e12, -1e-4, -1e20]])
    total = sum((split_sums(row) for row in rows), np.zeros(8, np.uint64))
    np.testing.assert_allclose(join_sums(total), rows.sum(0), rtol=1e-9, atol=2**-30)


def test_sums_that_have_no_room_are_refused():
    require_addable(np.array([1e20]), 4096)
    for values in ([math.nan], [math.inf], [1e25]):
        with pytest.raises(ValueError, match="finite and below"):
            require_addable(np.array(values), 4096)


def test_the_largest_sums_of_the_most_clients_do_not_overflow():
    most = 2.0**82 / 4096 * 0.999
    total = np.zeros(4, np.uint64)
    for _ in range(4096):
        total += split_sums(np.array([most, -most]))
    np.testing.assert_allclose(join_sums(total), [4096 * most, -4096 * most])


@pytest.mark.parametrize("clients", [2, 10, 100])
def test_weighed_updates_add_up_to_the_plain_weighed_sum(clients):
    experiment, grid, random = secure(), Grid(2.0, 20), np.random.default_rng(clients)
    layout = UpdateLayout(experiment, SIZES)
    parts = [
        Part(
            random.normal(0, 0.3, 6).astype(np.float32),
            float(random.uniform(0.01, 1)),
            ("kind", "flag") if random.random() < 0.5 else ("kind",),
        )
        for _ in range(clients)
    ]
    total = sum(layout.pack(part, grid, random) for part in parts)
    found = layout.unpack(total, grid, clients)
    plain = sum(part.weight * part.update.astype(float) for part in parts)
    weight = sum(part.weight for part in parts)
    np.testing.assert_allclose(found.update, plain, atol=2 * clients * grid.step)
    assert found.weight == pytest.approx(weight, abs=clients * 2**-19)
    holders = sum(part.weight for part in parts if "flag" in part.tasks)
    assert found.held["flag"] == pytest.approx(holders, abs=clients * 2**-19)


def test_alike_clients_send_no_weights():
    layout = UpdateLayout(secure(**{"weight-by": "uniform"}), SIZES)
    assert layout.full_width == 6 + 1  # the update, and whether it holds "flag"


def test_a_weight_is_never_nothing():
    layout, grid = UpdateLayout(secure(), SIZES), Grid(2.0, 8)
    part = Part(np.zeros(6, np.float32), 1e-9, ())
    assert layout.pack(part, grid, np.random.default_rng(0))[6] == 1


def test_sums_have_the_same_places_at_every_client_whatever_tasks_it_has():
    layout = SumsLayout(secure(), trained=True, evaluated=True)
    one = {"train": {"kind": {"loss": [3.0, 4.0]}}, "test": {"kind": {"loss": [1.0, 2.0],
           "accuracy": [1.0, 2.0]}}}  # fmt: skip
    other = {"train": {"flag": {"loss": [5.0, 6.0]}, "kind": {"loss": [1.0, 1.0]}}}
    total = layout.pack(one) + layout.pack(other)
    assert layout.unpack(total) == {
        "train": {"kind": {"loss": [4.0, 5.0]}, "flag": {"loss": [5.0, 6.0]}},
        "validation": {},
        "test": {"kind": {"loss": [1.0, 2.0], "accuracy": [1.0, 2.0]}},
    }
    with pytest.raises(ValueError, match="does not have"):
        layout.pack({"train": {"other": {"loss": [1.0, 1.0]}}})
