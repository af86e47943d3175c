"""Local training equals plain PyTorch, and a task without labels pulls on nothing."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from client.batches import epoch_order, label_patterns, shuffle_key
from client.flat import TRUNK, FlatLayout
from client.training import Trainer
from common.dataset import ClientData, Rows
from common.model import build_model
from common.sharing import STAYS
from tests.conftest import make_client, make_experiment

SHAPES = {"x": (8,)}
WEIGHTS = {"kind": 1.0, "flag": 0.5, "size": 2.0}
CPU = torch.device("cpu")


def trainer_for(experiment) -> Trainer:
    trainer = Trainer(experiment, SHAPES, CPU)
    trainer.load({}, {})
    return trainer


def with_labels(data: ClientData, task: str, mask: torch.Tensor) -> ClientData:
    rows = data.train
    masked = Rows(rows.inputs, rows.targets, {**rows.labelled, task: mask})
    return replace(data, splits={**data.splits, "train": masked})


def without_task(data: ClientData, task: str) -> ClientData:
    def drop(rows: Rows) -> Rows:
        kept = [t for t in rows.targets if t != task]
        return Rows(
            rows.inputs,
            {t: rows.targets[t] for t in kept},
            {t: rows.labelled[t] for t in kept},
        )

    return replace(data, splits={split: drop(rows) for split, rows in data.splits.items()})


def plain_loop(experiment, data: ClientData, round_number: int):
    """The textbook loop: nn.Module, torch.optim, boolean masks."""
    model = build_model(experiment, SHAPES)
    optimiser = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[experiment.training.optimiser](
        model.parameters(), lr=experiment.training.lr
    )
    rows = data.train
    for epoch in range(experiment.training.epochs):
        key, patterns = shuffle_key(0, data.name), label_patterns(rows.labelled)
        order = epoch_order(len(rows), patterns, "tasks", key, round_number, epoch)
        for start in range(0, len(order), experiment.training.batch_size):
            index = torch.from_numpy(order[start : start + experiment.training.batch_size])
            batch = rows.select(index)
            outputs, _ = model(batch.inputs, batch.targets)
            loss = torch.zeros(())
            for task, mask in batch.labelled.items():
                if not mask.any():
                    continue
                out, truth = outputs[task][mask], batch.targets[task][mask]
                loss = loss + WEIGHTS[task] * {
                    "kind": lambda o, t: F.cross_entropy(o, t),
                    "flag": lambda o, t: F.binary_cross_entropy_with_logits(o[:, 0], t),
                    "size": lambda o, t: F.mse_loss(o, t),
                }[task](out, truth)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("labels", ["all", "some", "few"])
def test_training_equals_a_plain_loop(optimiser, labels):
    experiment = make_experiment(
        training={"optimiser": optimiser, "lr": 0.05, "epochs": 2, "batch-size": 4}
    )
    data = make_client(rows=10)
    if labels != "all":
        mask = torch.zeros(10, dtype=torch.bool)
        mask[: {"some": 6, "few": 1}[labels]] = True
        data = with_labels(data, "flag", mask)
    trainer = trainer_for(experiment)
    trainer.train(data, WEIGHTS, 3)
    for name, expected in plain_loop(experiment, data, 3).items():
        ours = torch.tensor(trainer.flat.read([name])[name])
        torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_task_without_labels_leaves_its_head_and_the_others_trunk_alone():
    experiment = make_experiment()
    data = make_client()
    unlabelled = with_labels(data, "flag", torch.zeros(10, dtype=torch.bool))
    trained = {}
    for key, variant in {"masked": unlabelled, "absent": without_task(data, "flag")}.items():
        trainer = trainer_for(experiment)
        before = trainer.flat.read(["heads.task-flag.0.weight"])
        trainer.train(variant, WEIGHTS, 1)
        after = trainer.flat.read(["heads.task-flag.0.weight"])
        assert (before["heads.task-flag.0.weight"] == after["heads.task-flag.0.weight"]).all()
        trained[key] = trainer.flat.values.clone()
    assert torch.isfinite(trained["masked"]).all()
    torch.testing.assert_close(trained["masked"], trained["absent"])


def test_garbage_under_the_mask_is_never_read():
    experiment, data = make_experiment(), make_client()
    mask = torch.arange(10) % 2 == 0
    poisoned = with_labels(data, "size", mask)
    poisoned.train.targets["size"][~mask] = float("nan")
    trainer = trainer_for(experiment)
    sums = trainer.train(poisoned, WEIGHTS, 1)
    assert torch.isfinite(trainer.flat.values).all()
    assert sums["size"]["loss"][1] == 5.0


def test_a_zero_weight_task_leaves_the_trunk_alone():
    weights = {"kind": 1.0, "flag": 0.0, "size": 1.0}
    data = make_client()
    with_it, without = trainer_for(make_experiment()), trainer_for(make_experiment())
    with_it.train(data, weights, 1)
    without.train(without_task(data, "flag"), weights, 1)
    (trunk,) = with_it.flat.layout.segments[TRUNK]
    torch.testing.assert_close(with_it.flat.values[trunk], without.flat.values[trunk])


def test_dropout_depends_on_seed_client_and_round_alone():
    experiment = make_experiment(trunk={"widths": [6], "dropout": 0.5})
    data, results = make_client(), []
    for disturbance in (0, 1):
        torch.manual_seed(disturbance)
        trainer = trainer_for(experiment)
        trainer.train(data, WEIGHTS, 1)
        results.append(trainer.flat.values.clone())
    assert torch.equal(*results)


def test_a_task_may_be_called_trunk():
    experiment = make_experiment().model_dump(by_alias=True)
    experiment["tasks"] = {"trunk": experiment["tasks"]["kind"]}
    experiment["tasks"]["trunk"]["target"] = "kind"
    model = build_model(type(make_experiment()).model_validate(experiment), SHAPES)
    segments = FlatLayout(model).segments
    assert set(segments) == {TRUNK, "trunk"}
    columns = [set(range(c.start, c.stop)) for name in segments for c in segments[name]]
    assert sum(map(len, columns)) == len(set().union(*columns))


def test_evaluation_sums_are_means_times_counts():
    trainer, data = trainer_for(make_experiment()), make_client()
    sums = trainer.evaluate(data, "test")
    rows = data.splits["test"]
    output = trainer.model(rows.inputs, ["kind"])[0]["kind"]
    expected = F.cross_entropy(output, rows.targets["kind"], reduction="sum").item()
    assert sums["kind"]["loss"] == [pytest.approx(expected, rel=1e-5), 3.0]


def test_a_task_called_like_a_module_attribute_works():
    tasks = {"type": {"kind": "binary"}, "parameters": {"kind": "regression"}}
    experiment = make_experiment().model_dump(by_alias=True) | {"tasks": tasks}
    model = build_model(type(make_experiment()).model_validate(experiment), SHAPES)
    assert set(model({"x": torch.zeros(1, 8)}, ["type", "parameters"])[0]) == {"type", "parameters"}


def test_dropout_of_one_head_is_its_own():
    kind = {"kind": "multiclass", "classes": 3, "dropout": 0.5}
    experiment = make_experiment(tasks={"kind": kind, "flag": {"kind": "binary"}})
    model = build_model(experiment, SHAPES).train()
    inputs, ones = {"x": torch.ones(100, 8)}, torch.Generator().manual_seed(0)
    model.heads["task-kind"][0].generator = ones
    outputs, _ = model(inputs, ["kind", "flag"])
    assert outputs["kind"].unique(dim=0).shape[0] > 1  # rows alike, masks unlike
    assert outputs["flag"].unique(dim=0).shape[0] == 1


@pytest.mark.parametrize("stacked", [True, False])
def test_running_statistics_follow_the_rows_whatever_the_penalties(stacked):
    statistics = []
    for rate in (0.0, 5.0):
        training = {"lr": 1e-9, "epochs": 3, "weight-decay": rate, "l1": rate}
        norm = {"widths": [6], "norm": "batch"}
        trainer = trainer_for(make_experiment(trunk=norm, training=training))
        trainer.cohorts = trainer.cohorts if stacked else None
        trainer.train(make_client(), WEIGHTS, 1)
        names = [name for name in trainer.shared if STAYS["local-statistics"](name)]
        statistics.append(trainer.flat.read(names))
    assert len(statistics[0]) == 2
    for name, values in statistics[0].items():
        assert abs(values - (0 if "mean" in name else 1)).min() > 1e-3  # they moved
        assert values == pytest.approx(statistics[1][name], rel=1e-5)


def test_evaluation_goes_by_the_running_statistics_however_it_is_computed():
    trainer = trainer_for(make_experiment(trunk={"widths": [6], "norm": "batch"}))
    data = make_client()
    trainer.train(data, WEIGHTS, 1)
    by_hand, before = trainer.evaluate(data, "test"), trainer.flat.values.clone()
    trainer.cohorts = None
    by_autograd = trainer.evaluate(data, "test")
    for task, sums in by_hand.items():
        assert sums["loss"] == pytest.approx(by_autograd[task]["loss"], rel=1e-5)
    assert torch.equal(trainer.flat.values, before)


def test_norms_that_stay_belong_to_a_client_whatever_its_tasks():
    norm = {"widths": [6], "norm": "layer", "norm-parameters": "local"}
    trainer = trainer_for(make_experiment(trunk=norm))
    own = trainer.own_names(("flag",))
    assert {name.split(".")[-1] for name in own if "heads" not in name} == {
        "norm_weight",
        "norm_bias",
    }
    assert all("task-flag" in name for name in own if "heads" in name)
    assert not set(own) & set(trainer.shared)
