"""A newcomer's heads: by hand, by the closed form, and on a trunk that no bit of changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.few_rows import keep_rows
from client.personalise import CONTENDERS, HEADS, Fitting, Limits, fit_contender
from client.training import Trainer
from common.agreement import agree, describe
from common.architectures.table import SHARINGS
from common.dataset import ClientData
from common.encoding import encode_prepared
from common.errors import ConfigError
from common.model import build_model
from common.preparation import prepare
from common.sharing import shared_names
from common.tables import ClientTable
from tests.conftest import make_client, make_experiment
from tests.raw_tables import plan, table

SHAPES = {"x": (8,)}
NORMS = [
    {"norm": norm, "norm_parameters": stays, "dropout": dropout}
    for norm, stays, dropout in [
        ("none", "shared", 0.0),
        ("none", "shared", 0.5),
        ("layer", "local", 0.0),
        ("batch", "shared", 0.3),
        ("batch", "local", 0.0),
        ("batch", "local-statistics", 0.0),
    ]
]
LINEAR = {"widths": [3], "activation": "none"}
ONE_TASK = {"size": {"kind": "regression"}}


def make_trainer(seed=0, **tables) -> Trainer:
    return Trainer(make_experiment(seed=seed, **tables), SHAPES, torch.device("cpu"))


def trunk_of(trainer: Trainer, seed=9):
    """What another seed's model would share: a trunk that is not the trainer's first."""
    other = build_model(trainer.experiment.model_copy(update={"seed": seed}), SHAPES)
    arrays = {name: p.detach().numpy().copy() for name, p in other.named_parameters()}
    return {name: arrays[name] for name in shared_names(arrays, trainer.experiment)}


def without_validation(data: ClientData) -> ClientData:
    empty = data.train.select(slice(0, 0))
    return replace(data, splits={**data.splits, "validation": empty})


def one_task(rows=6, **splits) -> ClientData:
    """A client with the task `size` alone."""
    data = make_client(rows=rows)
    only = {
        name: replace(part, targets={"size": part.targets["size"]}, labelled={
            "size": part.labelled["size"]})
        for name, part in {**data.splits, **splits}.items()
    }  # fmt: skip
    return replace(data, splits=only)


def linear_trainer(**training) -> Trainer:
    settings = {"batch-size": 100, "lr": 0.1, "device": "cpu", **training}
    experiment = make_experiment(trunk=LINEAR, training=settings)
    return Trainer(
        experiment.model_copy(update={"tasks": {"size": experiment.tasks["size"]}}),
        SHAPES,
        torch.device("cpu"),
    )


def features_and_targets(trunk, data):
    weight, bias = (
        next(array for name, array in trunk.items() if name.endswith(end))
        for end in ("weight", "bias")
    )
    x = data.train.inputs["x"].numpy().astype(np.float64)
    return x @ weight.T + bias, data.train.targets["size"].numpy().astype(np.float64)


# The trunk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", NORMS, ids=str)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_no_bit_of_the_trunk_changes_while_heads_do(sharing, settings):
    trainer = make_trainer(trunk={"sharing": sharing, **settings})
    trunk, data = trunk_of(trainer), make_client("new")
    heads = [name for name in trainer.flat.layout.slices if name.startswith("heads.")]
    new = {name: trainer.flat.read(heads)[name] for name in heads}
    fit_contender(trainer, data, trunk, HEADS, Limits(3))
    after = trainer.flat.read([*trunk, *heads])
    for name, array in trunk.items():
        assert after[name].tobytes() == array.tobytes(), name
    assert all((after[name] != new[name]).any() for name in heads)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_features_computed_once_give_the_heads_that_the_whole_model_gives(sharing):
    fitted = []
    for from_features in (True, False):
        trainer = make_trainer(trunk={"sharing": sharing, "task_parts": None})
        trunk, data = trunk_of(trainer), make_client("new")
        trainer.load(trunk, {})
        heads = [n for n in trainer.flat.layout.slices if n.startswith("heads.")]
        fitting = Fitting(trainer, data, heads)
        if not from_features:
            fitting.from_features, fitting.train = False, data.train
            fitting.held_out = data.splits["validation"]
        fitting.run(Limits(4))
        fitted.append(trainer.flat.read(heads))
    for name, array in fitted[0].items():
        np.testing.assert_allclose(array, fitted[1][name], rtol=1e-5, atol=1e-6)


def test_norms_that_stay_home_are_the_newcomers_own():
    trainer = make_trainer(trunk={"norm": "batch", "norm_parameters": "local"})
    trunk = trunk_of(trainer)
    norms = [name for name in trainer.flat.layout.slices if ".norm_" in name]
    before = trainer.flat.read(norms)
    fit_contender(trainer, make_client("new"), trunk, HEADS, Limits(2))
    assert not any(".norm_" in name for name in trunk)
    assert all((trainer.flat.read(norms)[name] != before[name]).any() for name in norms)


def test_heads_that_travel_are_where_a_newcomer_starts():
    trainer = make_trainer(federation={"algorithm": "whole-model"})
    data, trunk = make_client("new"), trunk_of(trainer)
    heads = {name: array for name, array in trunk.items() if name.startswith("heads.")}
    still = make_trainer(federation={"algorithm": "whole-model"}, training={"lr": 1e-12})
    fit_contender(still, data, trunk, HEADS, Limits(1))
    for name, array in still.flat.read(heads).items():
        np.testing.assert_allclose(array, heads[name], atol=1e-7)
    fit_contender(trainer, data, trunk, HEADS, Limits(1))
    assert all((trainer.flat.read(heads)[name] != array).any() for name, array in heads.items())


# The arithmetic ----------------------------------------------------------------------------------


def test_three_epochs_with_momentum_and_decay_equal_numpy():
    lr, momentum, decay = 0.1, 0.5, 0.01
    trainer = linear_trainer(lr=lr, momentum=momentum, **{"weight-decay": decay})
    data, trunk = without_validation(one_task()), trunk_of(trainer)
    trainer.load(trunk, {})
    name = "heads.task-size.0"
    start = trainer.flat.read([f"{name}.weight", f"{name}.bias"])
    w, b = (start[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    fit_contender(trainer, data, trunk, HEADS, Limits(3))
    features, y = features_and_targets(trunk, data)
    speed_w, speed_b = np.zeros_like(w), np.zeros_like(b)
    for _ in range(3):
        slope = 2 * (features @ w.T + b - y) / len(y)  # of the mean squared error
        speed_w = momentum * speed_w + slope.T @ features + decay * w
        speed_b = momentum * speed_b + slope.sum(0) + decay * b
        w, b = w - lr * speed_w, b - lr * speed_b
    after = trainer.flat.read(start)
    np.testing.assert_allclose(after[f"{name}.weight"], w, rtol=1e-5)
    np.testing.assert_allclose(after[f"{name}.bias"], b, rtol=1e-5)


def test_a_linear_head_reaches_the_closed_form_optimum():
    trainer = linear_trainer(lr=0.3, momentum=0.9)
    data, trunk = without_validation(one_task(rows=40)), trunk_of(trainer)
    fit_contender(trainer, data, trunk, HEADS, Limits(2000))
    features, y = features_and_targets(trunk, data)
    optimum = np.linalg.lstsq(np.hstack([features, np.ones((len(y), 1))]), y, rcond=None)[0][:, 0]
    after = trainer.flat.read(["heads.task-size.0.weight", "heads.task-size.0.bias"])
    found = np.concatenate([array.reshape(-1) for array in after.values()])
    np.testing.assert_allclose(found, optimum, atol=1e-4)


def test_from_scratch_is_what_a_client_trains_alone():
    # The federation's own trainer, told to do as many epochs under the same name of shuffles.
    settings = {"epochs": 5, "batch-size": 4, "lr": 0.1, "device": "cpu", "momentum": 0.5}
    trainer, other = (make_trainer(training=settings) for _ in range(2))
    data = without_validation(make_client("new"))
    fit_contender(trainer, data, trunk_of(trainer), "alone", Limits(5))
    other.load({}, {})
    other.train(data, other.experiment.task_weights(), 0)
    np.testing.assert_allclose(trainer.flat.values, other.flat.values, rtol=1e-4, atol=1e-6)


def test_fine_tuning_starts_from_the_trunk_and_moves_it():
    still = make_trainer(training={"lr": 1e-12})
    trunk = trunk_of(still)
    fit_contender(still, make_client("new"), trunk, "fine-tuned", Limits(1))
    for name, array in still.flat.read(trunk).items():
        np.testing.assert_allclose(array, trunk[name], atol=1e-7)
    trainer = make_trainer()
    fit_contender(trainer, make_client("new"), trunk, "fine-tuned", Limits(1))
    assert any((trainer.flat.read(trunk)[name] != array).any() for name, array in trunk.items())


def learnable(data: ClientData) -> ClientData:
    """Targets that follow from the inputs, with noise: more epochs help, and then harm."""
    splits = {}
    for split, rows in data.splits.items():
        x = rows.inputs["x"]
        targets = {
            "kind": x[:, :3].argmax(1),
            "flag": (x[:, 3] > 0).float(),
            "size": x[:, 4:5] + rows.targets["size"],
        }
        splits[split] = replace(rows, targets=targets)
    return replace(data, splits=splits)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_keeps_the_epoch_of_lowest_validation_loss(name):
    data, trunk = learnable(make_client("new", rows=12, seed=3)), trunk_of(make_trainer())
    losses = []
    for epochs in range(1, 21):
        trainer = make_trainer()
        fit_contender(trainer, without_validation(data), trunk, name, Limits(epochs))
        sums = trainer.evaluate(data, "validation")
        losses.append(sum(numbers["loss"][0] / numbers["loss"][1] for numbers in sums.values()))
    trainer = make_trainer()
    fit = fit_contender(trainer, data, trunk, name, Limits(20))
    best = int(np.argmin(losses))
    assert (fit.epochs, fit.done) == (best + 1, 20)
    kept = trainer.flat.values.clone()
    fit_contender(trainer, without_validation(data), trunk, name, Limits(best + 1))
    assert torch.equal(kept, trainer.flat.values)
    assert 0 < best < 19  # else the test would not tell
    early = fit_contender(make_trainer(), data, trunk, name, Limits(20, patience=2))
    wait = next(  # the first epoch that two do not better
        e for e in range(18) if losses[e] <= min(losses[: e + 3])
    )
    assert (early.epochs, early.done) == (wait + 1, wait + 3)


def test_what_diverges_keeps_an_epoch_before_it_did():
    trainer = linear_trainer(lr=1e6)
    fit = fit_contender(trainer, one_task(rows=12), trunk_of(trainer), HEADS, Limits(200))
    assert fit.epochs == 1
    assert np.isfinite(trainer.flat.values.numpy()).all()


def test_one_fit_leaves_nothing_behind_for_the_next():
    trainer, fresh = make_trainer(trunk={"dropout": 0.3}), make_trainer(trunk={"dropout": 0.3})
    data, trunk = make_client("new"), trunk_of(trainer)
    for name in CONTENDERS:
        fit_contender(trainer, data, trunk, name, Limits(3))
    again = fit_contender(trainer, data, trunk, HEADS, Limits(3))
    alone = fit_contender(fresh, data, trunk, HEADS, Limits(3))
    assert again == alone
    assert torch.equal(trainer.flat.values, fresh.flat.values)


def test_a_task_without_validation_labels_is_not_judged_by():
    data = make_client("new")
    held_out = data.splits["validation"]
    nobody = {task: torch.zeros_like(mask) for task, mask in held_out.labelled.items()}
    unlabelled = replace(held_out, labelled=nobody)
    splits = {**data.splits, "validation": unlabelled}
    trainer = make_trainer()
    fit = fit_contender(
        trainer, replace(data, splits=splits), trunk_of(trainer), HEADS, Limits(7, patience=1)
    )
    assert (fit.epochs, fit.done) == (7, 7)


# Few rows ----------------------------------------------------------------------------------------

CLASSES = {"c": {"kind": "multiclass", "classes": 4}}


def few(count, raw=None, seed=0, **settings):
    experiment = plan(tasks=CLASSES, **{"unseen_classes": "keep", "test": 0.2, **settings})
    raw = raw or table(rows=100, c=np.repeat([0, 0, 1, 2], 25))
    return keep_rows(prepare(raw, experiment), count, seed), experiment


def test_fewer_rows_are_among_more_and_held_out_rows_stay():
    kept = [set(few(count)[0].splits["train"].tolist()) for count in (1, 5, 20, None)]
    assert [len(rows) for rows in kept] == [1, 5, 20, 65]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    for split in ("validation", "test"):
        assert few(5)[0].splits[split].tolist() == few(None)[0].splits[split].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_drawn_in_the_proportion_of_their_classes(seed):
    whole = few(None)[0]
    shares = np.bincount(whole.targets["c"].values[whole.splits["train"]], minlength=4) / 65
    drawn, _ = few(16, seed=seed)
    counts = np.bincount(drawn.targets["c"].values[drawn.splits["train"]], minlength=4)
    assert counts.sum() == 16
    assert np.abs(counts - 16 * shares).max() < 2
    other = few(16, seed=seed + 1)[0].splits["train"]
    assert set(drawn.splits["train"].tolist()) != set(other.tolist())


def test_scalings_are_fitted_on_the_rows_that_are_drawn():
    raw = ClientTable("a", {"x1": np.arange(50.0), "y": 3 * np.arange(50.0)})
    experiment = plan(
        inputs={"x": {"columns": ["x1"], "standardise": "client"}},
        tasks={"y": {"kind": "regression", "standardise": "client"}},
    )
    prepared = keep_rows(prepare(raw, experiment), 4, 0)
    fitted = encode_prepared(
        prepared, experiment, agree([describe(raw, experiment)], experiment)
    ).fitted
    rows = prepared.splits["train"]
    assert len(rows) == 4
    assert fitted.inputs["x"].mean.tolist() == [raw.columns["x1"][rows].mean()]
    assert fitted.targets["y"].deviation.tolist() == [raw.columns["y"][rows].std()]


def test_a_task_without_a_label_among_the_rows_drawn_is_left_out_and_said():
    label = np.full(100, np.nan)
    label[:60] = 1.0
    raw = table(y=label, z=np.where(np.arange(100) == 99, 1.0, np.nan), x1=np.arange(100.0))
    tasks = {"y": {"kind": "regression"}, "z": {"kind": "regression"}}
    experiment = plan(tasks=tasks, test=0.0, validation=0.0)
    kept = keep_rows(prepare(raw, experiment), 2, 0)
    assert set(kept.targets) == {"y"}
    assert kept.notes[-1] == "task 'z' left out: none of the 2 rows drawn has a label"


def test_more_rows_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"--rows must be at most 65.* client 'a', got 66;"):
        few(66)
