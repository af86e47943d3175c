"""One client, two, and a thousand: all run, and memory stays flat over rounds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.experiment_file import load_experiment
from simulations.simulate import simulate

EXPERIMENT = """
name = "many"
[data]
source = "table"
path = "rows.csv"
client-column = "who"
unseen-classes = "keep"
[inputs.x]
columns = ["x*"]
[tasks.sign]
kind = "binary"
[tasks.size]
kind = "regression"
[trunk]
widths = [8]
[federation]
rounds = 8
"""


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def experiment_of(tmp_path: Path, clients: int):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(18 * clients, 4)).round(3)
    table = pd.DataFrame(values, columns=["x0", "x1", "x2", "x3"])
    table["sign"] = (values[:, 0] > 0).astype(int)
    table["size"] = values[:, 1]
    table["who"] = np.repeat(np.arange(clients), 18)
    table.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "many.toml").write_text(EXPERIMENT)
    return load_experiment(str(tmp_path / "many.toml"))


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("clients", [1, 2])
def test_one_client_and_two_run(tmp_path, engine, clients):
    results = simulate(experiment_of(tmp_path, clients), engine=engine, out=tmp_path / "run")
    assert results["final"]["clients"] == clients
    assert results["rounds"] == 8


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_thousand_clients_run_in_memory_that_does_not_grow(tmp_path, engine):
    sizes = []
    results = simulate(
        experiment_of(tmp_path, 1000),
        engine=engine,
        out=tmp_path / "run",
        listener=lambda line: sizes.append(resident_bytes()),
    )
    assert results["final"]["clients"] == 1000
    assert sizes[-1] - sizes[2] < 10 * 2**20
