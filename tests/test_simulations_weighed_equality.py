"""Every weighting that has a stacked form trains there as it does by itself."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.stacked_model import find_obstacle
from common.experiment_file import load_experiment
from common.weighting.scaling import SCALINGS
from common.weighting.table import WEIGHTINGS
from simulations.simulate import simulate

FEW = [
    "federation.rounds=3",
    "partition.clients=6",
    "partition.task-skew=random",
    "partition.tasks-per-client=2",
    "federation.clients-per-round=4",
    "training.optimiser=sgd",
    "training.lr=0.02",
]


def experiment_with(*overrides: str):
    return load_experiment("digits", [*FEW, *overrides])


CASES = [
    *(["loss.weighting=" + name] for name in WEIGHTINGS),
    *(["loss.scaling=" + name] for name in SCALINGS),
    ["loss.weighting=uncertainty", "loss.scope=local"],
    ["loss.weighting=famo", "loss.scope=local", "loss.scaling=running-mean"],
]
STACKED = [case for case in CASES if find_obstacle(experiment_with(*case)) is None]


def test_weightings_that_go_by_losses_alone_have_a_stacked_form():
    names = {case[0].removeprefix("loss.weighting=") for case in STACKED}
    by_losses = {"equal", "manual", "uncertainty", "dwa", "random", "geometric", "imtl-l", "famo"}
    assert names >= by_losses | {"smooth-tchebycheff"}


@pytest.mark.parametrize("case", STACKED, ids=" ".join)
def test_batched_equals_loopback(case, tmp_path):
    found = {}
    for engine in ("loopback", "batched"):
        simulate(experiment_with(*case), engine=engine, out=tmp_path / engine)
        folder = tmp_path / engine
        (file,) = (folder / "checkpoint").glob("trunk-*")
        line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        memory = json.loads((folder / "checkpoint" / "checkpoint.json").read_text())["loss_memory"]
        found[engine] = (load_file(file), line["weights"], memory)
    (one, weights, memory), (other, *_) = found["loopback"], found["batched"]
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=2e-5)
    assert found["batched"][1] == pytest.approx(weights, rel=1e-4)
    assert found["batched"][2].keys() == memory.keys()
    for task, numbers in memory.items():
        assert found["batched"][2][task] == pytest.approx(numbers, rel=1e-3, abs=1e-6)
