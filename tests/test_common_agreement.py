import itertools
import json

import numpy as np
import pytest

from common.agreement import (
    Agreement,
    Description,
    agree,
    describe,
    disagreement,
    input_shapes,
    require_labels,
)
from common.errors import DataError
from common.splits import split_rows
from tests.raw_tables import NUMERIC, plan, table, text

FEDERATED = {"x": {"columns": ["x*"], "standardise": "federation"}}
TOWNS = {"t": {"kind": "categorical", "columns": ["town"]}}
ALL_TRAIN = {"validation": 0.0, "test": 0.0}


def description(client="a", columns=("x1",), **facts):
    return Description(client=client, columns={"x": columns}, labelled={"y": 5}, **facts)


def test_a_description_tells_no_more_than_names_and_counts_unless_asked():
    told = json.loads(describe(table(rows=20), plan()).to_json())
    assert told == {
        "client": "a",
        "examples": {"train": 13, "validation": 3, "test": 4},
        "labelled": {"y": 13},
        "columns": {"x": ["x1"]},
    }


def test_sums_come_from_training_rows_alone():
    raw = table(rows=20)
    experiment = plan(inputs=FEDERATED)
    train = split_rows(raw, experiment)["train"].astype(float)
    sums = describe(raw, experiment).sums["x"]
    assert (sums.count, sums.total, sums.squares) == (
        (13.0,),
        (train.sum(),),
        ((train**2).sum(),),
    )


def test_federation_scaling_is_that_of_all_training_rows_together():
    tables = [table("a", x1=[0.0, 2.0]), table("b", x1=[4.0, 4.0, 10.0])]
    experiment = plan(inputs=FEDERATED, **ALL_TRAIN)
    scaling = agree([describe(raw, experiment) for raw in tables], experiment).scalings["x"]
    assert scaling.mean == (4.0,)  # 20 / 5
    assert scaling.deviation == pytest.approx((11.2**0.5,))  # (16 + 4 + 0 + 0 + 36) / 5


def test_sums_of_far_numbers_keep_their_deviation():
    seconds = 1.7e9 + np.arange(0.0, 20_000.0)
    experiment = plan(inputs=FEDERATED, **ALL_TRAIN)
    scaling = agree([describe(table(x1=seconds), experiment)], experiment).scalings["x"]
    assert scaling.deviation == pytest.approx((seconds.std(),), rel=1e-3)


def test_categories_are_the_sorted_union_of_training_categories():
    experiment = plan(inputs=TOWNS, **ALL_TRAIN)
    told = [
        describe(table("a", town=text("rome", "oslo")), experiment),
        describe(table("b", town=text("bern", "oslo")), experiment),
    ]
    agreement = agree(told, experiment)
    assert agreement.categories == {"t": {"town": ("bern", "oslo", "rome")}}
    assert input_shapes(agreement) == {"t": (3,)}


def test_declared_categories_are_not_collected():
    inputs = {"t": {**TOWNS["t"], "categories": ["oslo", "rome"]}}
    raw = table(town=text("rome", "oslo"))
    assert describe(raw, plan(inputs=inputs, **ALL_TRAIN)).categories == {}


def test_the_order_of_descriptions_changes_nothing():
    rng = np.random.default_rng(0)
    experiment = plan(inputs={**FEDERATED, **TOWNS})
    told = [
        describe(table(n, x1=rng.normal(size=9), town=text(*"uvwuvwuvw")), experiment)
        for n in "abcd"
    ]
    agreements = {agree(order, experiment).to_json() for order in itertools.permutations(told)}
    assert len(agreements) == 1


def test_the_commonest_columns_are_agreed_on():
    told = [description("a", ("x9",)), description("b"), description("c")]
    agreement = agree(told, plan())
    assert agreement.columns == {"x": ("x1",)}
    assert disagreement(told[1], agreement) is None
    assert "lacks 'x1' and has 'x9' besides" in disagreement(told[0], agreement)


def test_a_tie_goes_to_the_client_whose_name_is_first():
    told = [description("b", ("x1",)), description("a", ("x9",))]
    assert agree(told, plan()).columns == {"x": ("x9",)}


def test_the_order_of_columns_in_a_file_does_not_matter():
    columns = {"x10": [1.0, 2.0], "x2": [3.0, 4.0], "x1": [5.0, 6.0]}
    one, other = table(**columns), table(**dict(reversed(columns.items())))
    told = [describe(raw, plan(**ALL_TRAIN)).columns["x"] for raw in (one, other)]
    assert told == [("x1", "x2", "x10")] * 2


def test_named_columns_keep_their_order():
    inputs = {"x": {"columns": ["x2", "x1"]}}
    raw = table(x1=[1.0, 2.0], x2=[1.0, 2.0])
    assert describe(raw, plan(inputs=inputs, **ALL_TRAIN)).columns["x"] == ("x2", "x1")


def test_a_wildcard_matches_no_label_no_bookkeeping_and_no_column_of_another_input():
    inputs = {"x": {"columns": ["*"], "exclude": ["note*"]}, **TOWNS}
    raw = table(
        x1=[1.0, 2.0],
        when=[1.0, 2.0],
        who=text("a", "a"),
        note1=text("u", "v"),
        town=text("u", "v"),
    )
    data = {"client_column": "who", "split": "ordered", "split_column": "when", **ALL_TRAIN}
    assert describe(raw, plan(inputs=inputs, **data)).columns["x"] == ("x1",)


def test_both_survive_their_journey():
    experiment = plan(inputs={**FEDERATED, **TOWNS}, **ALL_TRAIN)
    told = describe(table(x1=[0.1, 0.2], town=text("u", "v")), experiment)
    agreement = agree([told], experiment)
    assert Description.from_json(told.to_json()) == told
    assert Agreement.from_json(agreement.to_json()) == agreement


@pytest.mark.parametrize("text", ["", "[]", '{"client": 5}', '{"client": "a", "rows": [1]}'])
def test_an_unreadable_description_is_a_value_error(text):
    with pytest.raises(ValueError, match="validation error"):
        Description.from_json(text)


def test_a_client_may_be_left_out_without_an_error():
    experiment = plan(min_rows=5, unusable="leave-out")
    few, enough = (describe(table(n, rows=r), experiment) for n, r in (("a", 4), ("b", 5)))
    agreement = agree([few, enough], experiment)
    assert "at least 5 rows" in disagreement(few, agreement)
    assert disagreement(enough, agreement) is None


def test_nobody_left_is_an_error():
    experiment = plan(min_rows=5, unusable="leave-out")
    with pytest.raises(DataError, match="no client can take part: all 1 were left out"):
        agree([describe(table(rows=4), experiment)], experiment)


def test_a_task_that_nobody_holds_is_named():
    tasks = {"y": {"kind": "regression"}, "z": {"kind": "binary", "target": "ill"}}
    with pytest.raises(DataError, match=r"tasks\.z: no client has a training label.*'ill'"):
        require_labels([description()], plan(tasks=tasks))


def test_a_late_client_with_a_new_category_does_not_fit():
    experiment = plan(inputs=TOWNS, **ALL_TRAIN)
    agreement = agree([describe(table(town=text("u", "v")), experiment)], experiment)
    late = describe(table("b", town=text("u", "w")), experiment)
    assert "did not start with: 'w'" in disagreement(late, agreement)


def test_sums_of_another_length_do_not_enter():
    told = description(sums={"x": {"count": [1, 1], "total": [0, 0], "squares": [0, 0]}})
    with pytest.raises(DataError, match="every client must send 1 sums"):
        agree([told], plan(inputs=FEDERATED))


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(DataError, match=r"'z\*', which matches no column; there are 'x1', 'y'"):
        describe(table(), plan(inputs={"x": {"columns": ["z*"]}}))


def test_numeric_inputs_are_as_wide_as_their_columns():
    experiment = plan(inputs=NUMERIC, **ALL_TRAIN)
    told = describe(table(x1=[1.0, 2.0], x2=[1.0, 2.0]), experiment)
    assert input_shapes(agree([told], experiment)) == {"x": (2,)}


@pytest.mark.parametrize(("count", "told"), [(100, True), (101, False)])
def test_a_column_of_identifiers_is_not_told(count, told):
    many = table(town=text(*(f"person {i}" for i in range(count))))
    experiment = plan(inputs=TOWNS, **ALL_TRAIN)
    if told:
        assert len(describe(many, experiment).categories["t"]["town"]) == count
    else:
        with pytest.raises(DataError, match="at most 100 categories to be collected, got 101"):
            describe(many, experiment)
