import numpy as np
import pytest

from common.errors import DataError
from common.splits import split_rows
from tests.raw_tables import plan, table, text

CLASSES = {"y": {"kind": "multiclass", "classes": 4}}


def sizes(parts):
    return [len(parts[split]) for split in ("train", "validation", "test")]


@pytest.mark.parametrize("rows", [2, 3, 7, 20, 101])
@pytest.mark.parametrize("stratify", ["", "y"])
def test_every_row_is_in_exactly_one_part(rows, stratify):
    raw = table(y=np.arange(rows) % 4)
    parts = split_rows(raw, plan(tasks=CLASSES, stratify=stratify))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(rows))
    assert len(parts["train"])


def test_shares_are_rounded_half_up():
    assert sizes(split_rows(table(rows=20), plan(validation=0.15, test=0.2))) == [13, 3, 4]
    assert sizes(split_rows(table(rows=10), plan(validation=0.15, test=0.25))) == [5, 2, 3]


def test_a_split_depends_on_seed_and_client_name_only():
    def test_rows(name="a", seed=0, **columns):
        return split_rows(table(name, rows=50, **columns), plan(seed=seed))["test"].tolist()

    assert test_rows() == test_rows(y=np.ones(50))
    assert test_rows() != test_rows(name="b")
    assert test_rows() != test_rows(seed=1)


def test_stratified_parts_hold_each_class_in_share():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    parts = split_rows(table(y=y), plan(tasks=CLASSES, stratify="y", validation=0.1, test=0.5))
    assert abs(np.bincount(y[parts["test"]]) - [30, 15, 5]).max() <= 1
    assert abs(np.bincount(y[parts["validation"]]) - [6, 3, 1]).max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_stratified_split_leaves_a_training_row_of_every_class(seed):
    y = np.repeat([0, 1, 2, 3], [20, 2, 1, 1])
    parts = split_rows(table(y=y), plan(tasks=CLASSES, stratify="y", seed=seed))
    assert set(y[parts["train"]]) == {0, 1, 2, 3}


def test_a_client_without_the_task_to_stratify_by_is_split_all_the_same():
    tasks = {**CLASSES, "z": {"kind": "binary"}}
    raw = table(y=np.arange(20) % 4)
    assert sizes(split_rows(raw, plan(tasks=tasks, stratify="z"))) == [13, 3, 4]


def test_an_ordered_split_tests_on_the_last_rows():
    raw = table(when=[5.0, 1.0, 4.0, 2.0, 3.0])
    settings = {"split": "ordered", "split_column": "when", "validation": 0.2, "test": 0.4}
    parts = split_rows(raw, plan(**settings))
    assert {key: rows.tolist() for key, rows in parts.items()} == {
        "train": [1, 3],
        "validation": [4],
        "test": [2, 0],
    }


def test_dates_are_ordered_as_dates():
    raw = table(when=text("2024-10-01", "2023-12-31", "2024-02-01"))
    settings = {"split": "ordered", "split_column": "when", "validation": 0.0, "test": 0.3}
    assert split_rows(raw, plan(**settings))["test"].tolist() == [0]


def test_a_split_column_is_followed_and_an_empty_cell_is_in_no_part():
    raw = table(part=text("test", "Train", "val", None, "train"))
    parts = split_rows(raw, plan(split="column", split_column="part"))
    assert {key: rows.tolist() for key, rows in parts.items()} == {
        "train": [1, 4],
        "validation": [2],
        "test": [0],
    }


def test_validation_rows_are_drawn_from_training_where_the_column_names_none():
    raw = table(part=text(*["train"] * 10, *["test"] * 5))
    parts = split_rows(raw, plan(split="column", split_column="part", validation=0.2))
    assert sizes(parts) == [8, 2, 5]
    assert parts["test"].tolist() == [10, 11, 12, 13, 14]


@pytest.mark.parametrize("split", ["ordered", "column"])
def test_a_missing_split_column_is_named(split):
    with pytest.raises(DataError, match=r"client 'a' has no column 'when'.*data\.split-column"):
        split_rows(table(), plan(split=split, split_column="when"))


def test_a_word_that_is_no_split_is_counted():
    with pytest.raises(DataError, match=r"must say train, validation or test, got .* 1 of 2 rows"):
        split_rows(table(part=text("train", "holdout")), plan(split="column", split_column="part"))


@pytest.mark.parametrize("split", ["ordered", "column"])
def test_images_divide_no_rows(split):
    raw = table(when=np.zeros((4, 2, 2)))
    with pytest.raises(DataError, match=r"must hold one value a row, got arrays of \(2, 2\)"):
        split_rows(raw, plan(split=split, split_column="when"))


def test_a_gap_in_the_column_to_order_by_is_counted():
    with pytest.raises(DataError, match="must order every row, got 1 empty cells of 3"):
        split_rows(table(when=[1.0, np.nan, 2.0]), plan(split="ordered", split_column="when"))
