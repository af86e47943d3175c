"""Clients trained together end where clients trained one after another end."""

import numpy as np
import pytest
import torch

from client.batches import label_patterns, shuffle_key
from client.cohort import Cohort, largest_first
from client.row_store import RowStore
from client.training import Trainer
from common.dataset import Rows
from common.seeding import torch_generator
from tests.conftest import make_experiment, make_rows

SHAPES = {"x": (8,)}
WEIGHTS = {"kind": 1.0, "flag": 0.5, "size": 2.0}
SIZES = {"even": [10, 10, 10], "ragged": [3, 17, 1, 8], "one": [5]}
MODELS = {
    "plain": {},
    "tanh, layer norm": {"activation": "tanh", "norm": "layer"},
    "group norm": {"norm": "group", "norm-groups": 2, "widths": [6, 8]},
    "batch norm": {"norm": "batch", "weight-decay": 0.1},
    "gelu, dropout": {"activation": "gelu", "dropout": 0.3},
    "linear": {"activation": "none", "widths": [3]},
    "no trunk": {"widths": []},
    "rates of its own": {"weight-decay": 0.2, "l1": 0.02},
}
OPTIMISERS = {
    "sgd": {},
    "momentum": {"momentum": 0.9, "weight-decay": 0.01},
    "adam": {"optimiser": "adam", "lr": 0.01},
    "adamw": {"optimiser": "adamw", "lr": 0.01, "weight-decay": 0.1},
    "l1": {"l1": 0.01},
    "clipped": {"clip-norm": 0.3},
    "scheduled": {
        "schedule": "exponential",
        "step-schedule": "cyclic",
        "step-schedule-options": {"half": 2},
    },
    "adamw, clipped, one cycle": {
        "optimiser": "adamw",
        "lr": 0.01,
        "weight-decay": 0.1,
        "clip-norm": 0.3,
        "step-schedule": "one-cycle",
    },
}


def unlike(rows: Rows, place: int) -> Rows:
    """Take labels away: client 1 lacks a task, client 0 has some labels of another."""
    targets, labelled = dict(rows.targets), dict(rows.labelled)
    if place == 1:
        del targets["size"], labelled["size"]
    if place == 0:
        labelled["flag"] = torch.arange(len(rows)) % 3 == 0
    return Rows(rows.inputs, targets, labelled)


def train_one_by_one(experiment, parts):
    from common.dataset import ClientData

    trainer, results, losses = Trainer(experiment, SHAPES, torch.device("cpu")), [], []
    for place, rows in enumerate(parts):
        trainer.load({}, {})
        losses.append(trainer.train(ClientData(f"c{place}", {"train": rows}), WEIGHTS, 2))
        results.append(trainer.flat.values.clone())
    return torch.stack(results), losses


def train_together(experiment, parts):
    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    order = largest_first([len(rows) for rows in parts])
    assert trainer.cohorts is not None
    cohort = Cohort(
        RowStore.of(parts, ("x",), trainer.cohorts.model.tasks),
        order,
        np.array([shuffle_key(0, f"c{k}") for k in order], np.uint64),
        [label_patterns(parts[k].labelled) for k in order],
    )
    generators = [torch_generator(0, "dropout", f"c{k}", 2) for k in order]
    values = trainer.initial.repeat(len(parts), 1)
    sums = trainer.cohorts.train(cohort, values, WEIGHTS, 2, generators)
    back = np.argsort(order)
    return values[back], {task: numbers[back] for task, numbers in sums.items()}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("labels", ["all", "some"])
def test_together_equals_one_by_one(sizes, model, optimiser, labels):
    experiment = make_experiment(
        trunk={"widths": [6, 5], **MODELS[model]},
        training={"lr": 0.1, "epochs": 2, "batch-size": 4, **OPTIMISERS[optimiser]},
    )
    parts = [make_rows(n, seed) for seed, n in enumerate(SIZES[sizes])]
    if labels == "some":
        parts = [unlike(rows, place) for place, rows in enumerate(parts)]
    alone, losses = train_one_by_one(experiment, parts)
    together, sums = train_together(experiment, parts)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    for place, own in enumerate(losses):
        for task, numbers in own.items():
            expected = torch.tensor(numbers["loss"])
            torch.testing.assert_close(
                torch.tensor(sums[task][place], dtype=torch.float32), expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("model", MODELS)
def test_gradients_by_hand_equal_autograd(model):
    # Batch norm over three or four rows turns the rounding of sums into differences that show.
    size = 11 if model == "batch norm" else 4
    experiment = make_experiment(
        trunk={"widths": [6, 5], **MODELS[model]},
        training={"lr": 0.1, "batch-size": size, "epochs": 2},
        tasks={"tags": {"kind": "multilabel", "target": ["a", "b"]}},
    )
    rows, draw = make_rows(11, 0), torch.Generator().manual_seed(0)
    targets = {**rows.targets, "tags": (torch.randn(11, 2, generator=draw) > 0).float()}
    labelled = {**rows.labelled, "tags": torch.arange(11) % 2 == 0}
    rows = Rows(rows.inputs, targets, labelled)
    by_hand, _ = train_one_by_one_with(experiment, rows, stacked=True)
    by_autograd, _ = train_one_by_one_with(experiment, rows, stacked=False)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", ["clipped", "scheduled", "adamw, clipped, one cycle"])
def test_rates_and_clipping_are_alike_by_hand_and_by_autograd(options):
    training = {"lr": 0.1, "batch-size": 4, "epochs": 2}
    experiment = make_experiment(
        trunk={"widths": [6, 5]}, training={**training, **OPTIMISERS[options]}
    )
    rows = unlike(make_rows(11, 0), 0)
    by_hand, _ = train_one_by_one_with(experiment, rows, stacked=True)
    by_autograd, _ = train_one_by_one_with(experiment, rows, stacked=False)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-5, atol=1e-5)
    plain, _ = train_one_by_one_with(
        make_experiment(trunk={"widths": [6, 5]}, training=training), rows, stacked=True
    )
    assert (plain - by_hand).abs().max() > 1e-3


def train_one_by_one_with(experiment, rows, *, stacked):
    from common.dataset import ClientData

    trainer = Trainer(experiment, SHAPES, torch.device("cpu"))
    if not stacked:
        trainer.cohorts = None
    trainer.load({}, {})
    weights = {**WEIGHTS, "tags": 1.5}
    sums = trainer.train(ClientData("c", {"train": rows}), weights, 1)
    return trainer.flat.values, sums


@pytest.mark.parametrize("model", ["group norm", "batch norm"])
def test_a_row_left_over_is_normalised_alike_by_hand_and_by_autograd(model):
    experiment = make_experiment(
        trunk={"widths": [6, 5], **MODELS[model]},
        training={"lr": 0.1, "batch-size": 4, "epochs": 2, "momentum": 0.5},
    )
    rows = unlike(make_rows(9, 0), 0)  # two batches of four and one of one
    by_hand, _ = train_one_by_one_with(experiment, rows, stacked=True)
    by_autograd, _ = train_one_by_one_with(experiment, rows, stacked=False)
    assert torch.isfinite(by_hand).all()
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-4, atol=1e-5)


def test_heads_with_hidden_layers_have_a_stacked_form_too():
    tasks = {
        "kind": {"kind": "multiclass", "classes": 3, "hidden": [4]},
        "flag": {"kind": "binary"},
        "size": {"kind": "regression", "hidden": [3, 2]},
    }
    experiment = make_experiment(tasks=tasks, training={"optimiser": "adam", "lr": 0.01})
    rows = unlike(make_rows(9, 0), 0)
    by_hand, _ = train_one_by_one_with(experiment, rows, stacked=True)
    by_autograd, _ = train_one_by_one_with(experiment, rows, stacked=False)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("hidden", [[], [4]])
def test_heads_with_dropout_draw_the_same_masks_however_they_are_trained(sizes, hidden):
    tasks = {
        "kind": {"kind": "multiclass", "classes": 3, "hidden": hidden, "dropout": 0.4},
        "flag": {"kind": "binary"},
        "size": {"kind": "regression", "dropout": 0.2},
    }
    experiment = make_experiment(tasks=tasks, trunk={"widths": [6, 5], "dropout": 0.1})
    parts = [make_rows(n, seed) for seed, n in enumerate(SIZES[sizes])]
    alone, _ = train_one_by_one(experiment, parts)
    together, _ = train_together(experiment, parts)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    by_autograd, _ = train_one_by_one_with(experiment, parts[0], stacked=False)
    by_hand, _ = train_one_by_one_with(experiment, parts[0], stacked=True)
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-5, atol=1e-6)


def test_one_tasks_overflow_is_no_other_tasks_loss():
    rows = make_rows(10, 0)
    rows.targets["size"][:] = 1e20  # its square is infinite
    _, sums = train_one_by_one_with(make_experiment(training={"lr": 1e-30}), rows, stacked=True)
    _, expected = train_one_by_one_with(
        make_experiment(training={"lr": 1e-30}), rows, stacked=False
    )
    assert sums["size"]["loss"] == [float("inf"), 10.0]
    for task in ("kind", "flag"):
        assert sums[task]["loss"] == pytest.approx(expected[task]["loss"], rel=1e-5)
