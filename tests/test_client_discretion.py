"""Figures as they leave a client: as they are, suppressed, with noise, or not at all."""

import numpy as np
import pytest

from client.discretion import Discretion
from common.experiment_file import load_experiment

SUMS = {
    "train": {"digit": {"loss": [6.0, 12.0], "weight": [3.0, 3.0]}, "ink": {"loss": [8.0, 4.0]}},
    "test": {"digit": {"loss": [2.0, 4.0], "accuracy": [3.0, 4.0]}},
}
LEVEL = ["federation.weight-by=uniform", "privacy.client-level.noise-multiplier=1"]
NOISED = [*LEVEL, "tasks.ink.metric=mse", "privacy.sums=noised"]


def discretion(*settings: str, seed: int | None = 0) -> Discretion:
    return Discretion(load_experiment("digits", settings), seed)


def test_by_default_figures_are_sent_as_they_are() -> None:
    plain = discretion()
    assert plain.is_idle
    assert plain.reduce(SUMS, {"digit": 6, "ink": 4}, "a") == SUMS
    assert plain.examples(20) == 20


def test_groups_that_are_too_small_are_left_out_by_rows_not_by_passes() -> None:
    kept = discretion("privacy.smallest-group=6").reduce(SUMS, {"digit": 6, "ink": 2}, "a")
    assert kept == {"train": {"digit": SUMS["train"]["digit"]}, "test": {}}


def test_nothing_is_sent_where_figures_are_withheld() -> None:
    guard = discretion(*LEVEL, "privacy.sums=withheld", "privacy.counts=withheld")
    assert guard.reduce(SUMS, {"digit": 6, "ink": 4}, "a") == {}
    assert guard.examples(20) == 1


def test_with_next_to_no_noise_figures_are_clipped_means_that_each_count_once() -> None:
    tiny = ["privacy.sums-noise-multiplier=1e-9", "privacy.sums-max-norm=10"]
    sent = discretion(*NOISED, *tiny).reduce(SUMS, {}, "a")
    assert list(sent["train"]["digit"]) == ["loss"]  # weights of the loss stay at home
    figures = [*sent["train"]["digit"]["loss"], *sent["test"]["digit"]["accuracy"]]
    assert figures == pytest.approx([0.5, 1, 0.75, 1])
    short = discretion(*NOISED, tiny[0], "privacy.sums-max-norm=0.5").reduce(SUMS, {}, "a")
    means = [own["loss"][0] for split in short.values() for own in split.values()]
    means.append(short["test"]["digit"]["accuracy"][0])
    whole = np.array([0.5, 2.0, 0.5, 0.75])
    np.testing.assert_allclose(means, whole * 0.5 / np.linalg.norm(whole), rtol=1e-6)


def test_noise_on_figures_has_the_stated_deviation_and_repeats_only_in_a_simulation() -> None:
    settings = [*NOISED, "privacy.sums-noise-multiplier=2", "privacy.sums-max-norm=3"]
    blank = {"train": {"digit": {"loss": [0.0, 5.0]}}}
    seeded = discretion(*settings)
    draws = [seeded.reduce(blank, {}, "a", n)["train"]["digit"]["loss"][0] for n in range(4000)]
    assert np.std(draws) == pytest.approx(6, rel=0.06)
    assert abs(np.mean(draws)) < 0.5
    assert seeded.reduce(blank, {}, "a", 3)["train"]["digit"]["loss"][0] == draws[3]
    fresh = discretion(*settings, seed=None)
    assert fresh.reduce(blank, {}, "a", 3) != fresh.reduce(blank, {}, "a", 3)


def test_figures_of_training_that_diverged_are_no_hole_in_the_clipping() -> None:
    sums = {"train": {"digit": {"loss": [float("inf"), 4.0]}, "ink": {"loss": [1e300, 1.0]}}}
    guard = discretion(*NOISED, "privacy.sums-noise-multiplier=1e-9", "privacy.sums-max-norm=1")
    sent = guard.reduce(sums, {}, "a")["train"]
    assert np.isfinite([sent["digit"]["loss"][0], sent["ink"]["loss"][0]]).all()
    assert abs(sent["ink"]["loss"][0]) <= 1 + 1e-6
