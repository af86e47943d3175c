"""The likelihood-ratio attack on scores that are made up."""

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from simulations.attacks.lira import OWN_VARIANCE, Shadows, confidence_scores, likelihood_ratios
from simulations.attacks.roc import summarise


def make_shadows(models: int, rows: int, shift: float, seed: int = 0):
    """Scores that are `shift` higher where a model saw the row; the last model is attacked."""
    rng = np.random.default_rng(seed)
    hardness = rng.normal(0, 5, (1, rows, 1))  # rows differ more than membership does
    included = rng.random((models + 1, rows)).argsort(0) < (models + 1) // 2
    scores = hardness + rng.normal(size=(models + 1, rows, 1)) + shift * included[:, :, None]
    return scores[-1], included[-1], Shadows(scores[:-1], included[:-1])


def test_logits_are_scaled_as_in_the_paper():
    output, target = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(5) % 4,
    )
    p = torch.softmax(output.double(), 1)[torch.arange(5), target]
    scores = confidence_scores("multiclass", output, target)
    assert torch.allclose(scores[:, 0], torch.log(p / (1 - p)))


def test_binary_and_multilabel_scores_have_the_sign_of_the_label():
    logits = torch.tensor([[2.0, -1.0]])
    assert confidence_scores("multilabel", logits, torch.tensor([[1.0, 1.0]])).tolist() == [[2, -1]]
    assert confidence_scores("binary", torch.tensor([[3.0]]), torch.tensor([0.0])).item() == -3


def test_regression_scores_are_losses_turned_round():
    scores = confidence_scores("regression", torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
    assert scores.tolist() == [[-5.0]]


def test_certain_answers_have_finite_scores():
    scores = confidence_scores("multiclass", torch.tensor([[300.0, -300.0]]), torch.tensor([0]))
    assert scores.item() == 600


def area(members, others):
    found = summarise(members, others)["auc"]
    return found["value"], found["low"], found["high"]


@pytest.mark.parametrize("models", [16, OWN_VARIANCE])
def test_it_finds_members_that_a_threshold_does_not(models):
    target, members, shadows = make_shadows(models, 400, shift=2.0)
    plain = area(target[members, 0], target[~members, 0])
    for online in (True, False):
        ratios = likelihood_ratios(target, shadows, online=online)
        assert area(ratios[members], ratios[~members])[1] > plain[2] + 0.1


def test_without_an_effect_of_membership_it_finds_nothing():
    target, members, shadows = make_shadows(32, 600, shift=0.0, seed=3)
    for online in (True, False):
        _, low, high = area(*(likelihood_ratios(target, shadows, online=online)[m]
                              for m in (members, ~members)))  # fmt: skip
        assert low < 0.5 < high


def test_ratios_of_tasks_are_summed():
    target, _, shadows = make_shadows(8, 20, shift=1.0)
    twice = Shadows(np.concatenate([shadows.scores] * 2, 2), shadows.included)
    both = likelihood_ratios(np.concatenate([target] * 2, 1), twice)
    np.testing.assert_allclose(both, 2 * likelihood_ratios(target, shadows))


def test_a_task_without_a_label_says_nothing():
    target, _, shadows = make_shadows(8, 20, shift=1.0)
    missing = np.full_like(target, np.nan)
    scores = np.concatenate([shadows.scores, np.full_like(shadows.scores, np.nan)], 2)
    ratios = likelihood_ratios(
        np.concatenate([target, missing], 1), Shadows(scores, shadows.included)
    )
    np.testing.assert_allclose(ratios, likelihood_ratios(target, shadows))


def test_offline_does_not_look_at_models_that_saw_the_row():
    target, _, shadows = make_shadows(8, 20, shift=1.0)
    other = np.where(shadows.included[:, :, None], 1e3, shadows.scores)
    one, two = (
        likelihood_ratios(target, Shadows(s, shadows.included), online=False)
        for s in (shadows.scores, other)
    )
    np.testing.assert_array_equal(one, two)


def test_too_few_shadows_are_refused():
    target, _, shadows = make_shadows(3, 5, shift=1.0)
    with pytest.raises(ConfigError, match="--shadows must be at least 4"):
        likelihood_ratios(target, shadows)
