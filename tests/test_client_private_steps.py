"""DP-SGD: what a step is, what one row can do to it, and that every way there agrees."""

import numpy as np
import pytest
import torch

from client.batch_source import BatchSource
from client.batches import label_patterns, shuffle_key
from client.cohort import Cohort, largest_first
from client.optimisers import SGD
from client.private_autograd import PrivateAutograd, RowGradients, clipped_sum
from client.private_steps import ClippedSum
from client.row_privacy import RowPrivacy
from client.row_store import RowStore
from client.training import Trainer
from common.architectures.table import SHARINGS
from common.dataset import ClientData, Rows
from tests.conftest import make_experiment, make_rows

SHAPES = {"x": (8,)}
WEIGHTS = {"kind": 1.0, "flag": 0.5, "size": 2.0}
NORM = 0.3  # of rows whose gradients are mostly longer
MODELS = {
    "relu": {},
    "tanh, layer norm": {"activation": "tanh", "norm": "layer"},
    "gelu, group norm": {"activation": "gelu", "norm": "group", "norm-groups": 2, "widths": [6, 8]},
    "linear": {"activation": "none", "widths": [3]},
    "no trunk": {"widths": []},
}
SHARED = [name for name in SHARINGS if name != "adversarial"]  # which is refused


def private(model=None, level=None, **tables):
    level = {"noise-multiplier": 1e-6, "max-norm": NORM, "delta": 1e-4, **(level or {})}
    return make_experiment(
        trunk={"widths": [6, 5], **(model or {})}, privacy={"example-level": level}, **tables
    )


def open_trainer(experiment):
    return Trainer(experiment, SHAPES, torch.device("cpu"), simulated=True)


def partly(rows, place=0):
    """Take labels away: one task has few, another none but one; row 0 has none of any."""
    labelled = dict(rows.labelled)
    labelled["flag"] = torch.arange(len(rows)) % 3 == 1
    labelled["size"] = torch.arange(len(rows)) == 1 + place
    labelled["kind"] = torch.arange(len(rows)) > 0
    return Rows(rows.inputs, rows.targets, labelled)


def stacked_sum(trainer, rows, max_norm=NORM):
    """Sum the clipped gradients of one client's rows by the stacked model."""
    model = trainer.cohorts.model
    values = trainer.flat.values.clone().unsqueeze(0)
    store = RowStore.of([rows], ("x",), model.tasks)
    share = torch.stack(list(rows.labelled.values()), 1).float().unsqueeze(0)
    gradients = torch.zeros_like(values)
    columns = [True] * values.shape[1]
    sink = ClippedSum(columns, gradients, torch.ones(1, len(rows)))
    model.bind(values)
    spread = model.tasks.spread({task: WEIGHTS[task] for task in rows.labelled})
    outputs = torch.empty(1, len(rows), model.tasks.width)
    inputs, targets = store.inputs.unsqueeze(0), store.targets.unsqueeze(0)
    model.step(inputs, targets, share @ spread, outputs, sink)
    sink.finish(max_norm)
    return gradients[0]


def hooked_sum(trainer, rows, max_norm=NORM):
    """Sum the clipped gradients by Opacus' hooks, or row by row where there is no other way."""
    found = RowGradients(trainer.experiment, trainer.model, trainer.flat)
    trainer.model.train()
    return clipped_sum(found.find(rows, WEIGHTS)[0], max_norm)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("hidden", [(), (4,)])
@pytest.mark.parametrize("max_norm", [NORM, 1e6])
def test_clipped_sums_equal_those_of_opacus(model, hidden, max_norm):
    tasks = {
        "kind": {"kind": "multiclass", "classes": 3, "hidden": hidden},
        "flag": {"kind": "binary"},
        "size": {"kind": "regression"},
    }
    trainer = open_trainer(private(MODELS[model], tasks=tasks))
    rows = partly(make_rows(9, 1))
    ours, theirs = stacked_sum(trainer, rows, max_norm), hooked_sum(trainer, rows, max_norm)
    assert ours.norm() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", SHARED)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_hooks_find_what_rows_one_by_one_have(sharing, norm):
    trainer = open_trainer(private({"sharing": sharing, "norm": norm}))
    finder, rows = (
        RowGradients(trainer.experiment, trainer.model, trainer.flat),
        partly(make_rows(7, 1)),
    )
    trainer.model.train()
    for task in (None, "size"):  # a client may lack a task, whose own layers then see no row
        held = {t: v for t, v in rows.targets.items() if t != task}
        own = Rows(rows.inputs, held, {t: rows.labelled[t] for t in held})
        found, losses = finder.find(own, WEIGHTS)
        by_row, finder.by_row = finder.by_row, True
        expected, one_by_one = finder.find(own, WEIGHTS)
        finder.by_row = by_row
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for name, values in losses.items():
            torch.testing.assert_close(values, one_by_one[name])
        assert not found[0].any()  # the row without a label


@pytest.mark.parametrize("sharing", ["stacked", *SHARED])
def test_no_row_moves_a_sum_by_more_than_max_norm(sharing):
    model = {} if sharing == "stacked" else {"sharing": sharing}
    trainer = open_trainer(private(model))
    summed = stacked_sum if sharing == "stacked" else hooked_sum
    rows = partly(make_rows(8, 3))
    rows.inputs["x"][5] *= 100
    whole, longest = summed(trainer, rows), 0.0
    for row in range(len(rows)):
        others = torch.tensor([r for r in range(len(rows)) if r != row])
        moved = float((whole - summed(trainer, rows.select(others))).norm())
        assert moved <= NORM * (1 + 1e-4)
        longest = max(longest, moved)
    assert longest > 0.99 * NORM


def test_a_row_of_infinite_gradient_leaves_the_others_as_they_are():
    trainer = open_trainer(private({"activation": "none"}))
    rows = make_rows(4, 0)
    kept = rows.select(torch.arange(1, 4))
    rows.inputs["x"][0] = 1e30
    for summed in (stacked_sum, hooked_sum):
        torch.testing.assert_close(summed(trainer, rows), summed(trainer, kept))


def test_a_step_by_hand():
    # One weight w and a bias from 0, y = 3 and 0.1, x = 0: gradients of (b - y)^2 in b are -6 and
    # -0.2; clipped at 1, -1 and -0.2; their mean -0.6, so that b = 0.06 at a rate of 0.1.
    tasks = {"size": {"kind": "regression", "init": "zero"}}
    level = {"noise-multiplier": 1e-9, "max-norm": 1.0}
    trainer = open_trainer(private({"widths": []}, level, tasks=tasks, training={"lr": 0.1}))
    targets = torch.tensor([[3.0], [0.1]])
    rows = Rows(
        {"x": torch.zeros(2, 8)}, {"size": targets}, {"size": torch.ones(2, dtype=torch.bool)}
    )
    trainer.load({}, {})
    sums = trainer.train(ClientData("a", {"train": rows}), {"size": 1.0}, 1)
    bias = trainer.flat.peek(["heads.task-size.0.bias"])["heads.task-size.0.bias"]
    np.testing.assert_allclose(bias, [0.06], rtol=1e-5)
    assert sums["size"]["loss"] == pytest.approx([9 + 0.01, 2])


def test_a_clipped_noisy_step_by_hand():
    # As above, and the noisy mean -0.6 is cut to -0.25: b = 0.025.
    tasks = {"size": {"kind": "regression", "init": "zero"}}
    level = {"noise-multiplier": 1e-9, "max-norm": 1.0}
    training = {"lr": 0.1, "clip-norm": 0.25}
    trainer = open_trainer(private({"widths": []}, level, tasks=tasks, training=training))
    targets = torch.tensor([[3.0], [0.1]])
    labelled = {"size": torch.ones(2, dtype=torch.bool)}
    rows = Rows({"x": torch.zeros(2, 8)}, {"size": targets}, labelled)
    trainer.load({}, {})
    trainer.train(ClientData("a", {"train": rows}), {"size": 1.0}, 1)
    bias = trainer.flat.peek(["heads.task-size.0.bias"])["heads.task-size.0.bias"]
    np.testing.assert_allclose(bias, [0.025], rtol=1e-5)


@pytest.mark.parametrize("sharing", ["hard", "soft"])
def test_rates_and_clipping_change_what_a_private_step_does(sharing):
    """The stacked and the autograd form both."""
    found = []
    for more in ({}, {"step-schedule": "cosine"}, {"schedule": "warm-up"}, {"clip-norm": 0.01}):
        training = {"batch-size": 4, "epochs": 2, **more}
        trainer = open_trainer(private({"sharing": sharing}, training=training))
        trainer.load({}, {})
        trainer.train(ClientData("a", {"train": make_rows(8, 0)}), WEIGHTS, 1)
        found.append(trainer.flat.values.clone())
    assert all((found[0] != other).any() for other in found[1:])


def never(monkeypatch):
    """Let no row be drawn."""
    nothing = np.zeros(0, np.int64)
    monkeypatch.setattr(RowPrivacy, "draw_rows", lambda self, client, count: nothing)


@pytest.mark.parametrize("model", [{}, {"sharing": "mtan"}])
def test_an_empty_batch_moves_by_the_stated_noise(monkeypatch, model):
    never(monkeypatch)
    # 12 rows in batches of 12, a step a round: -noise * lr, noise of deviation 2 * 0.3 / 12.
    level = {"noise-multiplier": 2.0}
    training = {"batch-size": 12, "lr": 1.0}
    trainer = open_trainer(private({"widths": [60, 40], **model}, level, training=training))
    trainer.load({}, {})
    before = trainer.flat.values.clone()
    trainer.train(ClientData("a", {"train": make_rows(12, 0)}), WEIGHTS, 1)
    moved = trainer.flat.values - before
    assert len(moved) > 3000
    assert float(moved.std()) == pytest.approx(0.05, rel=0.06)  # four deviations of it
    assert abs(float(moved.mean())) < 4 * 0.05 / len(moved) ** 0.5


@pytest.mark.parametrize("model", [{}, {"sharing": "mtan"}])
def test_a_head_without_labels_in_a_batch_gets_noise_and_one_that_is_not_held_does_not(
    monkeypatch, model
):
    never(monkeypatch)
    trainer = open_trainer(private(model, {"noise-multiplier": 2.0}))
    trainer.load({}, {})
    before = trainer.flat.values.clone()
    rows = make_rows(8, 0)
    held = {task: rows.targets[task] for task in ("kind", "flag")}
    labelled = {task: rows.labelled[task] for task in held}
    trainer.train(ClientData("a", {"train": Rows(rows.inputs, held, labelled)}), WEIGHTS, 1)
    moved = {
        name: bool((trainer.flat.values != before)[place].all())
        for name, place in trainer.flat.layout.slices.items()
    }
    assert all(moved[f"heads.task-{task}.0.weight"] for task in held)
    assert not any(
        (trainer.flat.values != before)[place].any()
        for name, place in trainer.flat.layout.slices.items()
        if "task-size" in name
    )


def test_decay_and_penalties_come_after_the_noise(monkeypatch):
    never(monkeypatch)
    level = {"noise-multiplier": 1e-9}
    training = {"batch-size": 8, "lr": 0.5, "weight-decay": 0.2}
    trainer = open_trainer(private({}, level, training=training))
    trainer.load({}, {})
    before = trainer.flat.values.clone()
    trainer.train(ClientData("a", {"train": make_rows(8, 0)}), WEIGHTS, 1)
    torch.testing.assert_close(trainer.flat.values, before * (1 - 0.5 * 0.2))


def test_the_penalty_of_soft_sharing_comes_after_the_noise(monkeypatch):
    never(monkeypatch)
    model = {"sharing": "soft", "options": {"strength": 0.1}}
    trainer = open_trainer(private(model, {"noise-multiplier": 1e-9}))
    trainer.load({}, {})
    before = float(trainer.model.trunk.penalty({}, {}).detach())
    trainer.train(ClientData("a", {"train": make_rows(8, 0)}), WEIGHTS, 1)
    assert float(trainer.model.trunk.penalty({}, {}).detach()) < 0.9 * before


@pytest.mark.parametrize("model", [m for m in MODELS if m != "no trunk"])
@pytest.mark.parametrize("optimiser", [{}, {"momentum": 0.9}, {"optimiser": "adam", "lr": 0.01}])
def test_clients_together_end_where_they_end_one_by_one(model, optimiser):
    dropout = {"dropout": 0.2} if model == "relu" else {}
    experiment = private(
        {**MODELS[model], **dropout},
        {"noise-multiplier": 1.0},
        training={"lr": 0.1, "epochs": 2, "batch-size": 4, **optimiser},
    )
    parts = [partly(make_rows(n, seed), seed % 2) for seed, n in enumerate([3, 17, 8])]
    del parts[1].targets["size"], parts[1].labelled["size"]
    names = [f"c{place}" for place in range(3)]
    trainer, alone, losses = open_trainer(experiment), [], []
    for name, rows in zip(names, parts, strict=True):
        trainer.load({}, {})
        losses.append(trainer.train(ClientData(name, {"train": rows}), WEIGHTS, 2))
        alone.append(trainer.flat.values.clone())
    order = largest_first([len(rows) for rows in parts])
    cohort = Cohort(
        RowStore.of(parts, ("x",), trainer.cohorts.model.tasks),
        order,
        np.array([shuffle_key(0, names[k]) for k in order], np.uint64),
        [label_patterns(parts[k].labelled) for k in order],
    )
    values = trainer.initial.repeat(3, 1)
    ordered = [names[k] for k in order]
    sums = trainer.cohorts.train(
        cohort,
        values,
        WEIGHTS,
        2,
        [g for n in ordered if (g := trainer.generator(n, 2)) is not None],
        draws=trainer.draws(ordered, 2),
    )
    back = np.argsort(order)
    torch.testing.assert_close(values[back], torch.stack(alone), rtol=1e-4, atol=1e-5)
    for place, own in enumerate(losses):
        for task, numbers in own.items():
            np.testing.assert_allclose(
                sums[task][back][place], numbers["loss"], rtol=1e-4, atol=1e-4
            )


def test_both_ways_of_stepping_agree():
    experiment = private({}, {"noise-multiplier": 1.0})
    trainer, rows = open_trainer(experiment), partly(make_rows(9, 2))
    trainer.load({}, {})
    start = trainer.flat.values.clone()
    trainer.train(ClientData("a", {"train": rows}), WEIGHTS, 1)
    stacked = trainer.flat.values.clone()
    trainer.flat.values.copy_(start)
    trainer.model.train()
    gradients = trainer.flat.gradients.unsqueeze(0)
    privacy = RowPrivacy.of(experiment, np.array([9], np.int64), trainer.draws(["a"], 1))
    steps = PrivateAutograd(
        RowGradients(experiment, trainer.model, trainer.flat),
        trainer.parts["all"],
        BatchSource(rows, trainer.device, resident=True),
        WEIGHTS,
        SGD(trainer.flat.values.unsqueeze(0), experiment.training, gradients),
        privacy,
    )
    steps.take_epoch()
    torch.testing.assert_close(trainer.flat.values, stacked, rtol=1e-4, atol=1e-6)


def test_a_missing_library_is_told_in_a_line(monkeypatch):
    import sys

    from common.errors import ConfigError

    monkeypatch.setitem(sys.modules, "opacus.grad_sample.grad_sample_module", None)
    trainer = open_trainer(private({"sharing": "mtan"}))
    with pytest.raises(ConfigError, match=r"pip install 'fedmtl\[privacy\]'"):
        trainer.train(ClientData("a", {"train": make_rows(4, 0)}), WEIGHTS, 1)


@pytest.mark.parametrize("hidden", [(), (4,)])
def test_a_head_may_start_from_zero(hidden):
    tasks = {"size": {"kind": "regression", "init": "zero", "hidden": hidden}}
    trainer = open_trainer(private(tasks=tasks))
    outputs, _ = trainer.model(make_rows(5, 0).inputs, ("size",))
    assert not outputs["size"].any()
    assert bool(trainer.flat.values.any())  # the rest starts as ever
