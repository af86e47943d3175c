import dataclasses
import time

import numpy as np
import pytest
import torch

from common.agreement import agree, describe
from common.encoding import encode
from common.errors import DataError
from common.splits import split_rows
from tests.raw_tables import encode_all, encode_alone, plan, table, text

ALL_TRAIN = {"validation": 0.0, "test": 0.0}
LAST_IS_TEST = {"split": "ordered", "split_column": "y", "validation": 0.0, "test": 0.25}


def numeric(**settings):
    return {"x": {"columns": ["x*"], **settings}}


def towns(**settings):
    return {"t": {"kind": "categorical", "columns": ["town"], **settings}}


def inputs_of(raw, inputs, **data):
    (name,) = inputs
    return encode_alone(raw, plan(inputs=inputs, **{**ALL_TRAIN, **data})).train.inputs[name]


def target_of(raw, **task):
    rows = encode_alone(raw, plan(tasks={"y": task}, **ALL_TRAIN)).train
    return rows.targets["y"].tolist(), rows.labelled["y"].tolist()


# No leakage: a law for every way of encoding -----------------------------------------------------

ENCODINGS = {
    "none": numeric(),
    "client": numeric(standardise="client"),
    "federation": numeric(standardise="federation"),
    "mean of the client": numeric(missing="mean"),
    "mean of the federation": numeric(missing="mean", standardise="federation"),
    "drop-row": numeric(missing="drop-row", standardise="client"),
    "collected categories": towns(),
    "declared categories": towns(categories=["u", "v"]),
    "own category": towns(missing="own-category"),
}


def spoil(raw, experiment):
    """Change every cell of every validation and test row; what is allowed there becomes a gap."""
    parts = split_rows(raw, experiment)
    held_out = np.concatenate([parts["validation"], parts["test"]])
    columns = {key: column.copy() for key, column in raw.columns.items()}
    columns["x1"][held_out] = 1e6
    columns["y"][held_out] = -1e6
    columns["town"][held_out] = "w"
    (settings,) = experiment.inputs.values()
    if settings.missing != "refuse":
        columns["x1"][held_out[0]] = np.nan
        columns["town"][held_out[0]] = None
    return dataclasses.replace(raw, columns=columns)


@pytest.mark.parametrize("inputs", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("standardise", ["none", "client"])
def test_held_out_rows_never_change_a_training_row_or_a_scale(inputs, standardise):
    experiment = plan(
        inputs=inputs, tasks={"y": {"kind": "regression", "standardise": standardise}}
    )
    raw = [table(name, rows=20, town=text(*"uv" * 10)) for name in "ab"]
    raw = [dataclasses.replace(r, columns={**table(rows=20).columns, **r.columns}) for r in raw]
    told = [describe(r, experiment) for r in raw]
    spoilt = [describe(spoil(r, experiment), experiment) for r in raw]
    agreement = agree(told, experiment)
    assert agree(spoilt, experiment) == agreement
    before, after = (
        encode_all(raw, experiment),
        encode_all([spoil(r, experiment) for r in raw], experiment),
    )
    for one, other in zip(before, after, strict=True):
        for part in ("inputs", "targets", "labelled"):
            for key, values in getattr(one.train, part).items():
                assert torch.equal(values, getattr(other.train, part)[key])
        for key, scale in one.target_scales.items():
            assert torch.equal(scale.mean, other.target_scales[key].mean)
            assert torch.equal(scale.deviation, other.target_scales[key].deviation)


# Numeric inputs ----------------------------------------------------------------------------------


def test_values_are_divided_by_the_scale():
    assert inputs_of(table(x1=[2.0, 4.0]), numeric(scale=2.0)).tolist() == [[1.0], [2.0]]


def test_a_client_standardises_by_its_own_rows():
    raw = table(x1=[0.0, 4.0], x2=[7.0, 7.0])  # mean 2, deviation 2; a constant column becomes 0
    encoded = inputs_of(raw, numeric(standardise="client"))
    assert encoded.tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_the_federation_standardises_by_everyone_s_rows():
    tables = [table("a", x1=[0.0, 0.0]), table("b", x1=[4.0, 4.0])]  # mean 2, deviation 2
    experiment = plan(inputs=numeric(standardise="federation"), **ALL_TRAIN)
    a, b = encode_all(tables, experiment)
    assert (a.train.inputs["x"].tolist(), b.train.inputs["x"].tolist()) == (
        [[-1.0]] * 2,
        [[1.0]] * 2,
    )


@pytest.mark.parametrize(
    ("missing", "expected"), [("mean", [[1.0], [2.0], [3.0]]), ("zero", [[1.0], [0.0], [3.0]])]
)
def test_an_empty_cell_follows_its_rule(missing, expected):
    assert inputs_of(table(x1=[1.0, np.nan, 3.0]), numeric(missing=missing)).tolist() == expected


def test_a_dropped_row_is_noted():
    data = encode_alone(
        table(x1=[1.0, np.nan, 3.0]), plan(inputs=numeric(missing="drop-row"), **ALL_TRAIN)
    )
    assert data.train.inputs["x"].tolist() == [[1.0], [3.0]]
    assert data.train.targets["y"].tolist() == [[0.0], [2.0]]
    assert data.notes == ("1 row with empty cells left out",)


def test_a_mean_of_nothing_is_zero():
    raw = table(x1=[np.nan, np.nan])
    for standardise in ("none", "client", "federation"):
        settings = numeric(missing="mean", standardise=standardise)
        assert inputs_of(raw, settings).tolist() == [[0.0], [0.0]]


def test_text_that_spells_numbers_is_numbers():
    assert inputs_of(table(x1=text("1", "2.5")), numeric()).tolist() == [[1.0], [2.5]]


def test_booleans_with_gaps_are_numbers_as_those_without_are():
    with_gap = table(x1=text("True", None, "False"))
    without = table(x1=[True, True, False])
    assert inputs_of(with_gap, numeric(missing="zero")).tolist() == [[1.0], [0.0], [0.0]]
    assert inputs_of(without, numeric()).tolist() == [[1.0], [1.0], [0.0]]


# Categorical inputs ------------------------------------------------------------------------------


def test_every_category_has_a_place():
    raw = table(town=text("rome", "oslo", "rome"))
    assert inputs_of(raw, towns()).tolist() == [[0, 1], [1, 0], [0, 1]]  # oslo, rome


def test_places_follow_the_declared_order_and_other_clients_categories_have_one():
    inputs = towns(categories=["rome", "oslo", "bern"])
    assert inputs_of(table(town=text("oslo", "rome")), inputs).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_a_gap_can_be_a_category():
    raw = table(town=text("oslo", None))
    assert inputs_of(raw, towns(missing="own-category")).tolist() == [[1, 0], [0, 1]]


def test_a_category_of_test_rows_alone_is_all_zeros():
    data = encode_alone(table(town=text("u", "v", "u", "w")), plan(inputs=towns(), **LAST_IS_TEST))
    assert data.splits["test"].inputs["t"].tolist() == [[0, 0]]


def test_a_training_row_of_an_undeclared_category_is_refused():
    with pytest.raises(
        DataError, match=r"column 'town'.*a category that is not known in 1 row of training"
    ):
        inputs_of(table(town=text("u", "v")), towns(categories=["u", "w"]))


def test_numbers_can_be_categories_whether_or_not_there_are_gaps():
    whole, gappy = table(town=[1, 2]), table(town=[1.0, np.nan, 2.0])
    assert inputs_of(whole, towns()).tolist() == [[1, 0], [0, 1]]
    assert inputs_of(gappy, towns(missing="drop-row")).tolist() == [[1, 0], [0, 1]]


# Images ------------------------------------------------------------------------------------------


def image(**settings):
    return {"i": {"kind": "image", "columns": ["pixels"], **settings}}


def test_an_image_gets_a_channel_and_its_scale():
    raw = table(pixels=np.full((2, 3, 4), 16, dtype=np.uint8))
    encoded = inputs_of(raw, image(shape=[1, 3, 4], scale=16.0))
    assert encoded.shape == (2, 1, 3, 4)
    assert encoded.unique().tolist() == [1.0]


def test_images_are_standardised_by_channel():
    pixels = np.zeros((2, 2, 2, 2))
    pixels[0, 0], pixels[:, 1] = 2.0, 5.0  # channel 0: mean 1, deviation 1; channel 1: constant
    for standardise in ("client", "federation"):
        settings = image(shape=[2, 2, 2], standardise=standardise)
        encoded = inputs_of(table(pixels=pixels), settings)
        assert encoded[:, 0, 0, 0].tolist() == [1.0, -1.0]
        assert encoded[:, 1].abs().max() == 0


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(DataError, match=r"shape \[1, 4, 4\].*got \[1, 3, 4\]"):
        inputs_of(table(pixels=np.zeros((2, 3, 4))), image(shape=[1, 4, 4]))


# Targets -----------------------------------------------------------------------------------------


def test_an_empty_cell_is_a_missing_label():
    raw = table(y=[1.0, np.nan], z=[0.0, 1.0])
    tasks = {"y": {"kind": "multiclass", "classes": 2}, "z": {"kind": "binary"}}
    rows = encode_alone(raw, plan(tasks=tasks, **ALL_TRAIN)).train
    assert rows.targets["y"].tolist() == [1, 0]
    assert rows.labelled["y"].tolist() == [True, False]


def test_classes_are_codes_or_names():
    assert target_of(table(y=[2, 0]), kind="multiclass", classes=3)[0] == [2, 0]
    named = target_of(table(y=text("dog", "cat")), kind="multiclass", classes=["cat", "dog", "eel"])
    assert named[0] == [1, 0]


@pytest.mark.parametrize(
    "cells", [[0, 1], [0.0, 1.0], [False, True], text("False", "true"), text("0", "1")]
)
def test_binary_labels_come_in_many_spellings(cells):
    assert target_of(table(y=cells), kind="binary")[0] == [0.0, 1.0]


def test_the_second_of_two_names_is_the_positive_class():
    assert target_of(table(y=text("no", "yes")), kind="binary", classes=["no", "yes"])[0] == [0, 1]


def test_labels_of_several_columns_form_a_vector():
    raw = table(u=[1, 0], v=[1, 1])
    task = {"kind": "multilabel", "target": ["u", "v"]}
    rows = encode_alone(raw, plan(tasks={"y": task}, **ALL_TRAIN)).train
    assert rows.targets["y"].tolist() == [[1.0, 1.0], [0.0, 1.0]]


def test_log1p_is_taken_of_the_target():
    raw = table(y=np.expm1([0.0, 2.0]))
    assert target_of(raw, kind="regression", transform="log1p")[0] == [[0.0], [2.0]]


def test_a_standardised_target_brings_its_scale():
    raw = table(y=[10.0, 14.0, np.nan], z=[0, 0, 1])
    tasks = {"y": {"kind": "regression", "standardise": "client"}, "z": {"kind": "binary"}}
    data = encode_alone(raw, plan(tasks=tasks, **ALL_TRAIN))
    assert data.train.targets["y"].tolist() == [[-1.0], [1.0], [0.0]]
    scale = data.target_scales["y"]
    assert (scale.mean.tolist(), scale.deviation.tolist()) == ([12.0], [2.0])


def test_a_constant_target_has_deviation_one_whatever_the_rounding():
    tasks = {"y": {"kind": "regression", "standardise": "client"}}
    data = encode_alone(table(y=[0.1, 0.1, 0.1]), plan(tasks=tasks, **ALL_TRAIN))
    assert data.target_scales["y"].deviation.tolist() == [1.0]
    assert data.train.targets["y"].abs().max() < 1e-9


def test_a_client_without_the_column_or_without_labels_does_not_hold_the_task():
    tasks = {"y": {"kind": "regression"}, "z": {"kind": "binary"}, "q": {"kind": "binary"}}
    data = encode_alone(table(z=[np.nan] * 3), plan(tasks=tasks, **ALL_TRAIN))
    assert data.tasks == ("y",)


def test_rows_without_any_label_are_in_no_part():
    data = encode_alone(table(y=[1.0, np.nan, 3.0]), plan(**ALL_TRAIN))
    assert data.train.inputs["x"].tolist() == [[0.0], [2.0]]
    assert data.notes == ("1 row without any label left out",)


def test_tensors_are_plain_and_typed():
    raw = table(pixels=np.zeros((4, 2, 2)), k=[0, 1, 2, 0], b=[0, 1, 0, 1])
    inputs = {**numeric(), **image(shape=[1, 2, 2])}
    tasks = {
        "k": {"kind": "multiclass", "classes": 3},
        "b": {"kind": "binary"},
        "y": {"kind": "regression"},
    }
    data = encode_alone(raw, plan(inputs=inputs, tasks=tasks, **ALL_TRAIN))
    rows = data.train
    tensors = [*rows.inputs.values(), *rows.targets.values(), *rows.labelled.values()]
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert [t.dtype for t in rows.inputs.values()] == [torch.float32] * 2
    assert [t.dtype for t in rows.targets.values()] == [torch.int64, torch.float32, torch.float32]
    assert [tuple(t.shape) for t in rows.targets.values()] == [(4,), (4,), (4, 1)]
    assert {t.dtype for t in rows.labelled.values()} == {torch.bool}


# Policies ----------------------------------------------------------------------------------------

RARE = {"y": {"kind": "regression"}, "z": {"kind": "binary", "target": "z"}}


def test_a_task_labelled_in_test_alone_is_refused_or_left_out():
    raw = table(y=[1.0, 2.0, 3.0, 4.0], z=[np.nan, np.nan, np.nan, 1.0])
    with pytest.raises(DataError, match=r"all labels of task 'z' \(1\) fall outside its training"):
        encode_alone(raw, plan(tasks=RARE, **LAST_IS_TEST))
    data = encode_alone(raw, plan(tasks=RARE, unusable="leave-out", **LAST_IS_TEST))
    assert data.tasks == ("y",)
    assert data.notes == ("task 'z' left out: no label falls into training",)


def test_a_class_of_test_rows_alone_is_refused_or_kept():
    raw = table(y=[0, 0, 0, 2], when=[1, 2, 3, 4])
    tasks = {"y": {"kind": "multiclass", "classes": 3}}
    data = {**LAST_IS_TEST, "split_column": "when"}
    with pytest.raises(DataError, match=r"task 'y': class '2' occurs in its test rows"):
        encode_alone(raw, plan(tasks=tasks, **data))
    kept = encode_alone(raw, plan(tasks=tasks, unseen_classes="keep", **data))
    assert kept.splits["test"].targets["y"].tolist() == [2]


def test_a_client_that_does_not_fit_the_agreement_says_why():
    experiment = plan(inputs=numeric(), **ALL_TRAIN)
    agreement = agree([describe(table(), experiment)], experiment)
    with pytest.raises(DataError, match=r"client 'b': its columns of inputs\.x differ.*'x2'"):
        encode(table("b", x1=[1.0, 2.0], x2=[1.0, 2.0]), experiment, agreement)


@pytest.mark.slow
def test_a_thousand_small_clients_are_encoded_in_seconds():
    columns = {f"x{i}": np.arange(18.0) for i in range(27)}
    tables = [table(f"c{i}", **columns) for i in range(1000)]
    start = time.perf_counter()
    assert len(encode_all(tables, plan(inputs=numeric(standardise="federation")))) == 1000
    assert time.perf_counter() - start < 10  # about 1.2 s; the rest is for a busy machine
