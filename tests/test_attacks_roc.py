"""Curves, areas and rates of attacks, and their intervals."""

import numpy as np
import pytest

from common.errors import ConfigError
from simulations.attacks.roc import clopper_pearson, rate_at, summarise, thin_curve, trace_roc


def area(members, others):
    return summarise(members, others)["auc"]


def test_area_is_the_share_of_pairs_in_order():
    found = area(np.array([3.0, 1.0]), np.array([2.0, 0.0, 1.0]))
    assert found["value"] == pytest.approx((3 + 1.5) / 6)  # 3 beats all; 1 beats 0, ties with 1
    assert found["low"] < found["value"] < found["high"]


def test_area_agrees_with_the_curve():
    rng = np.random.default_rng(0)
    members, others = rng.normal(0.5, 1, 80).round(1), rng.normal(0, 1, 60).round(1)
    curve = trace_roc(members, others)
    under = np.trapezoid(curve.true_positives, curve.false_positives)
    assert area(members, others)["value"] == pytest.approx(under)


def test_intervals_of_the_area_hold_the_truth_as_often_as_they_say():
    rng, truth = np.random.default_rng(1), 0.6381632  # Phi(0.5 / sqrt(2))
    found = [area(rng.normal(0.5, 1, 60), rng.normal(0, 1, 40)) for _ in range(300)]
    assert 0.91 <= np.mean([own["low"] <= truth <= own["high"] for own in found]) <= 0.99


def test_scores_apart_have_an_interval_that_shrinks_with_their_number():
    few, many = (area(np.ones(n), np.zeros(n)) for n in (10, 1000))
    assert few["value"] == many["value"] == many["high"] == 1
    assert few["low"] < 0.9 < 0.99 < many["low"]


def test_clopper_pearson_is_the_published_interval():
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I.
    for hits, count, low, high in [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617),
                                   (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)]:  # fmt: skip
        assert clopper_pearson(hits, count) == pytest.approx((low, high), abs=5e-5)


def test_a_rate_takes_no_more_of_the_others_than_it_may():
    others = np.arange(100.0)
    members = np.array([98.5, 50.0, 99.5, 200.0])
    found = rate_at(members, others, 0.01)
    assert found["fpr"] == 0.01  # 99 alone
    assert found["tpr"] == 0.75  # all but 50
    assert rate_at(members, others, 0.001) == rate_at(members, others, 0.0)


def test_ties_are_not_split():
    found = rate_at(np.ones(5), np.ones(5), 0.4)
    assert (found["tpr"], found["fpr"]) == (0, 0)


@pytest.mark.parametrize("scores", [([], [1.0]), ([1.0], []), ([np.nan], [1.0])])
def test_scores_that_say_nothing_are_refused(scores):
    with pytest.raises(ConfigError, match=r"members|numbers"):
        summarise(*(np.array(s) for s in scores))


def test_a_thin_curve_keeps_its_ends_and_its_first_steps():
    rng = np.random.default_rng(2)
    curve = trace_roc(rng.normal(size=3000), rng.normal(size=3000))
    false, true = thin_curve(curve, 100)
    assert len(false) <= 104
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert sum(x < 0.01 for x in false) > 10  # of 100, where evenly spread points would be one
