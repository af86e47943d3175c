"""Gradient inversion succeeds where it must, and fails where it must."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from simulations.attacks.guesses import make_model
from simulations.attacks.inversion import invert, start, true_heads
from simulations.attacks.inversion_result import describe_inversion, write_inversion
from simulations.attacks.inversion_settings import Settings
from simulations.attacks.local_steps import one_gradient, unrolled
from simulations.attacks.observed import observe
from simulations.attacks.scoring import match, ssim
from simulations.attacks.truth import client_data, trained_rows
from simulations.attacks.wire import EVERYBODY
from tests.recorded import ONE, ONE_ROW, SGD, record

NOISE = [
    "federation.weight-by=uniform",
    "privacy.client-level.noise=client",
    "privacy.client-level.noise-multiplier=100",
]
FEW = ["partition.clients=90", 'data.clients=["client-000", "client-001", "client-002"]']


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Clients with a row each, one step a round."""
    return record(tmp_path_factory.mktemp("one") / "run", *ONE_ROW)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """The same, with much noise on every update."""
    return record(tmp_path_factory.mktemp("noisy") / "run", *ONE_ROW, *NOISE)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Clients with a dozen rows, several steps a round, each with two tasks of three."""
    settings = ["training.optimiser=sgd", "training.lr=0.1", "training.epochs=2"]
    settings += ["training.batch-size=5", "training.momentum=0.5", "training.weight-decay=0.01"]
    settings += ["tasks.digit.weight=0.5"]
    settings += ["partition.task-skew=rotate", "partition.tasks-per-client=2"]
    settings += ["training.schedule=exponential", "training.step-schedule=cosine"]
    settings += ["training.clip-norm=1.0"]
    settings += ["training.l1=0.001", "loss.weighting=manual", "trunk.weight-decay=0.02"]
    return record(tmp_path_factory.mktemp("many") / "run", *FEW, *settings)


def relative(found) -> float:
    return found.errors["attack"]["relative"]["value"]


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_layer_gives_a_single_row_away(one, number):
    """Whatever the heads, which have moved in round 2."""
    found = invert(one, ONE, number, Settings("analytic"))
    assert relative(found) < 1e-4
    assert found.gain > 0.9999
    row = client_data(one, ONE).train.inputs["pixels"]
    torch.testing.assert_close(found.inputs["pixels"].float(), row, atol=1e-4, rtol=0)


@pytest.mark.parametrize("heads", ["initial", "learned"])
@pytest.mark.parametrize("labels", ["known", "learned"])
def test_dlg_finds_a_single_row(one, heads, labels):
    settings = Settings("dlg", heads=heads, labels=labels, iterations=20)
    found = invert(one, ONE, 1, settings)
    assert relative(found) < 1e-3
    if heads == "initial":  # of learned heads the classes may be called otherwise
        train = client_data(one, ONE).train
        assert found.labels["digit"].tolist() == train.targets["digit"].tolist()
        assert found.labels["parity"].tolist() == train.targets["parity"].tolist()


def test_cosine_finds_a_single_row(one):
    found = invert(one, ONE, 1, Settings("cosine", iterations=250))
    assert relative(found) < 0.05
    assert found.errors["attack"]["ssim"]["value"] > 0.98


def test_wrong_heads_lead_astray(one):
    found = invert(one, ONE, 1, Settings("dlg", heads="random", iterations=10))
    assert found.gain < 0


@pytest.mark.parametrize(
    ("method", "iterations"), [("analytic", None), ("dlg", 30), ("cosine", 250)]
)
def test_much_noise_leaves_nothing_to_find(noisy, method, iterations):
    """By what finds a single row without the noise, see above."""
    found = invert(noisy, ONE, 1, Settings(method, iterations=iterations))
    assert found.gain < 0.05


def test_the_mean_of_a_round_is_attacked_where_no_client_is_named(one):
    found = invert(one, EVERYBODY, 1, Settings("analytic"))
    assert found.facts["true-rows"] == 5
    assert found.errors["attack"]["mse"]["count"] == 5


@pytest.mark.parametrize("number", [1, 2])
def test_true_rows_followed_step_by_step_give_the_update(many, number):
    """What is optimised is 0 at the truth: momentum, rates, clipping, penalties, weights, all."""
    client = "client-001"
    observed, settings = observe(many, number, client), Settings(heads="true")
    rows = trained_rows(many, number, client)
    guess = start(observed, settings, rows, true_heads(many, observed, settings), 0)
    guess.inputs = {name: values.double() for name, values in rows.inputs.items()}
    model = make_model(observed)
    made, rough = unrolled(observed, model, guess), one_gradient(observed, model, guess)
    for name, seen in observed.gradient.items():
        size = seen.abs().max()
        assert (made[name] - seen).abs().max() < 1e-3 * size
        assert (rough[name] - seen).abs().max() > 1e-2 * size


def test_one_step_is_one_gradient(one):
    observed, settings = observe(one, 1, ONE), Settings()
    rows = trained_rows(one, 1, ONE)
    guess = start(observed, settings, rows, None, 0)
    guess.inputs = {name: values.double() for name, values in rows.inputs.items()}
    made = one_gradient(observed, make_model(observed), guess)
    for name, seen in observed.gradient.items():
        torch.testing.assert_close(made[name].detach(), seen, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_many_steps_are_undone_without_the_heads(tmp_path):
    """Four rows in four steps."""
    settings = ["training.optimiser=sgd", "training.lr=0.1", "training.epochs=2"]
    settings += ["training.batch-size=2", "trunk.widths=[48, 24]", "partition.clients=300"]
    wire = record(tmp_path / "run", *settings, 'data.clients=["client-000", "client-001"]')
    rough = Settings("dlg", heads="learned", iterations=40)
    followed = invert(wire, "client-001", 1, replace(rough, local="unrolled"))
    assert followed.facts["steps"] == 4
    assert followed.gain > 0.5
    assert followed.gain > invert(wire, "client-001", 1, rough).gain


@pytest.mark.slow
def test_a_convolutional_trunk_gives_a_single_row_away(tmp_path):
    cnn = ["trunk.architecture=cnn", "trunk.channels=[16]", "trunk.widths=[32]"]
    wire = record(tmp_path / "run", *ONE_ROW, *cnn)
    assert invert(wire, ONE, 1, Settings("dlg", iterations=40)).gain > 0.99
    with pytest.raises(ConfigError, match="needs a fully connected first layer"):
        invert(wire, ONE, 1, Settings("analytic"))


def test_faces_that_moved_a_unit_alone_are_read_off(tmp_path):
    """With ReLU, among 21 portraits and in one step: some are exact to what a float can hold."""
    one_step = ["training.batch-size=64", "trunk.widths=[64]", 'data.clients=["an2i", "glickman"]']
    wire = record(tmp_path / "run", *SGD, *one_step, base="cmu-faces")
    found = invert(wire, "an2i", 1, Settings("analytic"))
    assert (found.match.mse < 1e-6).sum() >= 2
    assert found.gain > 0.3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings("psychic"), "--method must be one of analytic, dlg, cosine"),
        (Settings(heads="none"), "--heads must be one of"),
        (Settings(rows=2), "--labels known needs --rows 1"),
        (Settings(restarts=0), "--restarts must be at least 1"),
        (Settings(lr=float("nan")), "--lr must be a positive finite number, got nan"),
        (Settings(lr=0.0), "--lr must be a positive finite number, got 0"),
        (Settings(total_variation=math.inf), "--total-variation must be a finite number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(one, settings, words):
    with pytest.raises(ConfigError, match=words):
        invert(one, ONE, 1, settings)


@pytest.mark.parametrize(
    ("client", "settings", "words"),
    [
        (EVERYBODY, Settings(heads="true"), "each has heads of its own"),
        (EVERYBODY, Settings(local="unrolled"), "follows the steps of one client"),
    ],
)
def test_the_mean_has_no_heads_and_no_steps(one, client, settings, words):
    with pytest.raises(ConfigError, match=words):
        invert(one, client, 1, settings)


def test_an_update_that_is_no_gradient_is_refused_by_dlg(one):
    training = one.experiment.training.model_copy(update={"optimiser": "adam"})
    adam = replace(one, experiment=one.experiment.model_copy(update={"training": training}))
    with pytest.raises(ConfigError, match=r"need training.optimiser 'sgd'.*got 'adam'"):
        invert(adam, ONE, 1, Settings("dlg"))


@pytest.mark.parametrize(
    "given",
    [{"optimiser_options": {"nesterov": True}}, {"patience": 2}, {"balance": "classes"}],
    ids=lambda given: next(iter(given)),
)
def test_steps_that_cannot_be_followed_are_not_unrolled(one, given):
    training = one.experiment.training.model_copy(update=given)
    other = replace(one, experiment=one.experiment.model_copy(update={"training": training}))
    with pytest.raises(ConfigError, match=r"--local unrolled follows plain steps .*one-gradient"):
        invert(other, ONE, 1, Settings(local="unrolled"))


def test_rows_are_paired_whatever_their_order():
    rows = np.random.default_rng(0).normal(size=(6, 4))
    pair = match(rows, rows[[3, 1, 5, 0, 2, 4]] + 0.001)
    assert pair.guessed.tolist() == [3, 1, 4, 0, 5, 2]
    np.testing.assert_allclose(pair.mse, 1e-6, rtol=1e-6)


def test_images_are_like_themselves_and_unlike_their_negatives():
    image = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(ssim(image, image), torch.ones(1).double())
    assert float(ssim(image, 1 - image)) < 0


def test_the_picture_holds_the_true_images_above_and_the_found_ones_below(one, tmp_path):
    from PIL import Image

    settings = Settings("analytic")
    found = invert(one, ONE, 1, settings)
    figures = describe_inversion(one, ONE, 1, settings, found)
    paths = write_inversion(tmp_path, one, figures, found)
    names = ["attack-inversion.json", "attack-inversion-pixels.png", "attack-inversion.html"]
    assert [path.name for path in paths] == names
    drawn = np.asarray(Image.open(paths[1]), dtype=float)[::12, ::12] / 255  # 12 pixels for one
    row = client_data(one, ONE).train.inputs["pixels"][0, 0].numpy()
    np.testing.assert_allclose(drawn[:8, :8], row, atol=0.01)
    np.testing.assert_allclose(drawn[-8:, :8], row, atol=0.01)
    assert "data:image/png;base64," in paths[2].read_text()
