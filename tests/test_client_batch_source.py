"""Batches are the same wherever rows lie, and training on them is the same, to the last bit."""

from dataclasses import replace

import pytest
import torch

from client.batch_source import BatchSource, count_bytes, fits_device
from client.training import Trainer
from common.experiment import Experiment
from tests.conftest import make_client, make_experiment, make_rows

CPU = torch.device("cpu")


@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_the_rows_in_the_order_asked_for(resident):
    rows, order = make_rows(10, 0), torch.randperm(10, generator=torch.Generator().manual_seed(1))
    with BatchSource(rows, CPU, resident=resident).batches(order, 4) as batches:
        found = list(batches)
    assert [len(batch) for batch in found] == [4, 4, 2]
    assert torch.equal(torch.cat([b.inputs["x"] for b in found]), rows.inputs["x"][order])
    assert torch.equal(torch.cat([b.targets["kind"] for b in found]), rows.targets["kind"][order])


def partly_labelled(rows: int = 23):
    data = make_client(rows=rows)
    labelled = dict(data.train.labelled)
    labelled["flag"] = torch.arange(rows) % 3 > 0
    labelled["kind"] = torch.arange(rows) % 2 > 0
    train = replace(data.train, labelled=labelled)
    return replace(data, splits={**data.splits, "train": train})


CASES = {
    "stacked": {},
    "adam": {"training": {"optimiser": "adam"}},
    "weighed": {"loss": {"weighting": "uncertainty"}},
    "after": {"loss": {"weighting": "famo"}},
    "autograd": {"trunk": {"sharing": "mmoe"}},
    "gradients": {"loss": {"weighting": "mgda"}},
    "dropout": {"trunk": {"dropout": 0.3}},
    "epochs": {"training": {"epochs": 3, "balance": "none"}},
    "private": {
        "privacy": {
            "example-level": {"max-norm": 1.0, "noise-multiplier": 1.0, "covers": "model"},
        }
    },
}


def train(experiment: Experiment, *, resident: bool):
    data = replace(partly_labelled(), resident=resident)
    trainer = Trainer(experiment, {"x": (8,)}, CPU, simulated=True)
    trainer.load({}, {})
    weights = experiment.task_weights()
    sums = [trainer.train(data, weights, number) for number in (1, 2)]
    figures = {split: trainer.evaluate(data, split) for split in data.splits}
    return trainer.flat.values.clone(), sums, figures


@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same_wherever_rows_lie(case):
    experiment = make_experiment(**CASES[case])
    values, sums, figures = train(experiment, resident=True)
    others, other_sums, other_figures = train(experiment, resident=False)
    assert torch.equal(values, others)
    assert sums == other_sums
    assert figures == other_figures


def test_evaluation_in_stretches_sums_to_the_whole(monkeypatch):
    tasks = {"kind": {"kind": "multiclass", "classes": 3}, "size": {"kind": "regression"}}
    tasks["flag"] = {"kind": "binary", "metric": "auroc"}
    experiment = make_experiment(tasks=tasks)
    data, trainer = partly_labelled(40), Trainer(experiment, {"x": (8,)}, CPU)
    whole = trainer.evaluate(data, "train")
    monkeypatch.setattr("client.training.AT_ONCE", 8 * 7)  # seven rows
    parts = trainer.evaluate(data, "train")
    assert list(parts) == list(whole)
    for task, numbers in whole.items():
        for name, sums in numbers.items():
            assert parts[task][name] == pytest.approx(sums, rel=1e-6)
    assert parts["flag"]["auroc"] == pytest.approx(whole["flag"]["auroc"], rel=1e-9)


def test_rows_fill_at_most_half_of_a_gpus_free_memory(monkeypatch):
    data, gpu = make_client(), torch.device("cuda")
    needed = count_bytes(data)
    for free, fits in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, free))
        assert fits_device(data, gpu) is fits
    assert fits_device(data, CPU)
    assert not fits_device(replace(data, resident=False), CPU)
