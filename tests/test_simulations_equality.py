"""After twenty rounds the batched engine still has the loopback engine's trunk."""

from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file

from server.federation import initial_trunk
from simulations.baselines import read_clients
from simulations.benchmarks.workloads import (
    WORKLOADS,
    Workload,
    make_experiment,
    resample_digits,
    write_rows,
)
from simulations.simulate import simulate

RAGGED = Workload(
    "40 clients of 5 to 100 digits, 10 a round",
    partial(resample_digits, sizes=np.geomspace(5, 100, 40).astype(int).tolist()),
    10,
)
# Batch norm of two rows is their sign, nearly: there, rounding grows from round to round.
EIGHT_ROWS = Workload(
    "20 clients, no batch of fewer than eight rows, 10 a round",
    partial(resample_digits, sizes=[24, 28, 40, 60, 76] * 4),
    10,
)
CASES = {
    "as it is": ("W1", {}, {}),
    "dropout": ("W1", {"dropout": 0.2}, {}),
    "norm and momentum": ("W1", {"norm": "layer"}, {"lr": 0.01, "momentum": 0.9}),
    "batch norm at home": ("eight", {"norm": "batch", "norm_parameters": "local"}, {}),
    "ragged": ("ragged", {}, {}),
    "ragged, adam, two epochs": ("ragged", {}, {"optimiser": "adam", "lr": 0.001, "epochs": 2}),
    "uneven tasks": ("tasks", {}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_rounds_batched_equal_twenty_rounds_of_loopback(case, tmp_path, monkeypatch):
    monkeypatch.setitem(WORKLOADS, "ragged", RAGGED)
    monkeypatch.setitem(WORKLOADS, "eight", EIGHT_ROWS)
    name, trunk, training = CASES[case]
    experiment = make_experiment(name, write_rows(name, tmp_path))
    experiment = experiment.model_copy(
        update={
            "federation": experiment.federation.model_copy(update={"rounds": 20}),
            "trunk": experiment.trunk.model_copy(update=trunk),
            "training": experiment.training.model_copy(update={"lr": 0.05, **training}),
        }
    )
    flat = {}
    for engine in ("loopback", "batched"):
        simulate(experiment, engine=engine, out=tmp_path / engine)
        (file,) = (tmp_path / engine / "checkpoint").glob("trunk-*")
        flat[engine] = flatten(load_file(file))
    _, agreement = read_clients(experiment)
    length = np.linalg.norm(flat["loopback"])
    assert np.linalg.norm(flat["loopback"] - flatten(initial_trunk(experiment, agreement))) > 0.1
    assert np.linalg.norm(flat["batched"] - flat["loopback"]) < 1e-5 * length


def flatten(trunk: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([trunk[name].reshape(-1) for name in sorted(trunk)])
