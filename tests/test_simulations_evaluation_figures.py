"""The figures of an evaluation, held against scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from sklearn import calibration, metrics

from common.dataset import TargetScale
from common.sections.rows import Task
from simulations.evaluation.answers import TaskRows, read_rows
from simulations.evaluation.curves import (
    BINS,
    MOST_POINTS,
    calibrate,
    count_decisions,
    trace_curves,
)
from simulations.evaluation.fairness import measure_skill, spread_over_clients
from simulations.evaluation.residuals import describe_residuals

CASES = [(7, None), (60, 1), (150, 2), (3000, 3)]  # rows, decimals of their scores: with ties


def scored(rows, decimals):
    generator = np.random.default_rng(rows)
    truth = generator.random(rows) < 0.4
    truth[:2] = True, False
    score = np.clip(0.3 * truth + 0.6 * generator.random(rows), 0, 1)
    return truth, score if decimals is None else score.round(decimals)


@pytest.mark.parametrize(("rows", "decimals"), CASES)
def test_areas_are_those_of_scikit_learn(rows, decimals):
    truth, score = scored(rows, decimals)
    found = trace_curves(truth, score)
    assert found["roc"]["auc"] == pytest.approx(metrics.roc_auc_score(truth, score))
    assert found["precision-recall"]["average-precision"] == pytest.approx(
        metrics.average_precision_score(truth, score)
    )
    assert found["positives"] + found["negatives"] == rows


@pytest.mark.parametrize(("rows", "decimals"), CASES[:3])
def test_curves_are_those_of_scikit_learn(rows, decimals):
    truth, score = scored(rows, decimals)
    found = trace_curves(truth, score)
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    np.testing.assert_allclose(found["roc"]["fpr"], fpr)
    np.testing.assert_allclose(found["roc"]["tpr"], tpr)
    assert metrics.auc(found["roc"]["fpr"], found["roc"]["tpr"]) == found["roc"]["auc"]
    precision, recall, _ = metrics.precision_recall_curve(truth, score)
    np.testing.assert_allclose(found["precision-recall"]["precision"], precision[::-1])
    np.testing.assert_allclose(found["precision-recall"]["recall"], recall[::-1])


def test_a_long_curve_is_thinned_to_points_that_lie_on_it():
    truth, score = scored(3000, None)
    found = trace_curves(truth, score)["roc"]
    fpr, tpr, _ = metrics.roc_curve(truth, score, drop_intermediate=False)
    assert len(found["fpr"]) == MOST_POINTS < len(fpr)
    kept = set(zip(found["fpr"], found["tpr"], strict=True))
    assert {(0.0, 0.0), (1.0, 1.0)} <= kept <= set(zip(fpr, tpr, strict=True))


@pytest.mark.parametrize("truth", [np.ones(3, bool), np.zeros(3, bool), np.ones(0, bool)])
def test_rows_of_one_kind_have_no_curve(truth):
    found = trace_curves(truth, np.linspace(0, 1, len(truth)))
    assert found["roc"] is None
    assert found["precision-recall"] is None


def test_decisions_are_counted_as_scikit_learn_does():
    generator = np.random.default_rng(0)
    truth, decided = generator.integers(0, 4, (2, 200))
    expected = metrics.confusion_matrix(truth, decided, labels=range(5))
    np.testing.assert_array_equal(count_decisions(truth, decided, 5), expected)


def test_bins_of_confidence_are_those_of_scikit_learn():
    right, confidence = scored(400, 2)  # rounded: some lie on the bins' edges
    found = calibrate(confidence, right)
    was, told = calibration.calibration_curve(right, confidence, n_bins=BINS)
    np.testing.assert_allclose([b["right"] for b in found["bins"]], was)
    np.testing.assert_allclose([b["confidence"] for b in found["bins"]], told)
    assert sum(b["rows"] for b in found["bins"]) == 400


def test_the_calibration_error_weighs_bins_by_rows():
    confidence = np.array([0.25, 0.25, 0.25, 0.95])
    found = calibrate(confidence, np.array([True, False, False, True]))
    assert found["ece"] == pytest.approx(3 / 4 * abs(1 / 3 - 0.25) + 1 / 4 * 0.05)
    assert calibrate(confidence[:0], np.ones(0, bool)) == {"ece": None, "bins": []}


def test_residuals_are_those_of_scikit_learn_and_every_row_is_in_a_cell():
    generator = np.random.default_rng(0)
    truth = generator.normal(5, 2, 500)
    value = truth + generator.normal(0.5, 1, 500)
    truth[0] = 1e6  # far off
    found = describe_residuals(truth, value)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, value))
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, value))
    assert found["mean"] == pytest.approx((value - truth).mean())
    cells = np.array(found["cells"]["rows"])
    assert cells.sum() == sum(found["histogram"]["rows"]) == 500
    assert found["cells"]["edges"][-1] < 100


def test_a_cell_stands_at_its_true_value_first():
    found = describe_residuals(np.array([0.0, 0.0, 10.0]), np.array([10.0, 10.0, 10.0]))
    assert found["cells"]["rows"][0][-1] == 2
    assert found["cells"]["rows"][-1][-1] == 1


@pytest.mark.parametrize("level", [0.0, -3.0, 1e9])
def test_values_that_are_all_alike_have_a_width_to_draw(level):
    found = describe_residuals(np.full(4, level), np.full(4, level))
    assert found["cells"]["edges"][0] < level < found["cells"]["edges"][-1]
    assert sum(found["histogram"]["rows"]) == 4


@pytest.mark.parametrize(("higher", "worst", "best"), [(True, 0.0, 1.9), (False, 1.9, 0.0)])
def test_the_worst_tenth_is_on_the_side_that_is_worse(higher, worst, best):
    figures = {f"c{n}": n / 10 for n in range(20)} | {"none": math.nan}
    found = spread_over_clients(figures, dict.fromkeys(figures, 7), higher_is_better=higher)
    assert (found["counted"], found["worst"], found["best"]) == (20, worst, best)
    assert found["worst-decile"] == pytest.approx((worst + abs(worst - 0.1)) / 2)
    assert (found["p10"], found["median"]) == (pytest.approx(0.19), pytest.approx(0.95))
    assert list(found["clients"])[-1] == "none"
    assert found["clients"]["none"] == {"figure": None, "rows": 7}


def test_nobody_has_a_figure():
    found = spread_over_clients({"a": math.nan}, {"a": 2}, higher_is_better=True)
    assert (found["counted"], found["worst-decile"]) == (0, None)


def rows_of(truth, value):
    return TaskRows(np.array(truth), np.array(value), None, np.ones(len(truth), bool))


@pytest.mark.parametrize(
    ("kind", "truth", "value", "skill"),
    [
        ("multiclass", [0, 0, 1, 2], [0, 0, 0, 0], 0.0),
        ("multiclass", [0, 0, 1, 2], [0, 0, 1, 0], 0.5),
        ("binary", [0, 1, 1, 1], [1, 0, 1, 1], -1.0),
        ("binary", [1, 1], [1, 1], math.nan),
        ("multilabel", [[0, 1], [1, 0]], [[0, 1], [1, 1]], 0.5),
        ("regression", [[1.0], [3.0]], [[2.0], [2.0]], 0.0),
        ("regression", [[1.0], [1.0]], [[1.0], [1.0]], math.nan),
    ],
)
def test_skill_is_what_answers_are_worth_beyond_a_guess(kind, truth, value, skill):
    assert measure_skill(kind, rows_of(truth, value)) == pytest.approx(skill, nan_ok=True)


def test_the_skill_of_a_regression_is_its_r2():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(50, 2))
    value = truth + generator.normal(size=(50, 2))
    expected = metrics.r2_score(truth, value)
    assert measure_skill("regression", rows_of(truth, value)) == pytest.approx(expected)


def test_rows_without_a_number_are_told_apart():
    output = torch.tensor([[1.0, 0.0], [math.nan, 0.0]])
    found = read_rows(Task(kind="multiclass", classes=2), output, torch.tensor([0, 1]), None)
    assert found.finite.tolist() == [True, False]
    assert len(found.answered()) == 1


def test_a_transformed_target_returns_to_its_unit_and_may_leave_the_numbers():
    task = Task(kind="regression", transform="log1p", standardise="client")
    scale = TargetScale(torch.tensor([1.0]), torch.tensor([2.0]))
    output = torch.tensor([[0.0], [1e6]])
    found = read_rows(task, output, torch.zeros(2, 1), scale)
    np.testing.assert_allclose(found.truth, math.expm1(1.0))
    assert found.value[0, 0] == pytest.approx(math.expm1(1.0))
    assert found.finite.tolist() == [True, False]
