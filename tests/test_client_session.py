"""Rows are prepared once, kept within a limit, and read anew by the next run."""

import numpy as np
import pandas as pd
import pytest

from client.session import LocalRows, _open_rows, close_sessions
from common.agreement import agree
from common.errors import DataError
from common.experiment_file import load_experiment
from simulations.simulate import simulate

EXPERIMENT = """
name = "mine"
[data]
source = "table"
path = "rows.csv"
client-column = "who"
[inputs.x]
columns = ["x"]
[tasks.size]
kind = "regression"
[trunk]
widths = [4]
[federation]
rounds = 2
"""


def write(folder, offset: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    table = pd.DataFrame({"who": np.repeat(["a", "b"], 20), "x": x, "size": x + offset})
    table.to_csv(folder / "rows.csv", index=False)


@pytest.fixture
def experiment(tmp_path):
    write(tmp_path, 0.0)
    (tmp_path / "mine.toml").write_text(EXPERIMENT)
    return load_experiment(str(tmp_path / "mine.toml"))


def test_what_was_prepared_to_describe_is_what_is_encoded(experiment, monkeypatch):
    rows = LocalRows(experiment)
    agreement = agree([rows.describe(name) for name in rows.names], experiment)
    monkeypatch.setattr("client.session.prepare", None)  # a second preparation would fail
    encoded = {name: rows.encode(name, agreement) for name in rows.names}
    assert {len(data.train) for data in encoded.values()} == {13}
    assert not rows._kept


def test_what_does_not_fit_is_prepared_again(experiment, monkeypatch):
    monkeypatch.setattr("client.session.KEPT_BYTES", 10)
    rows = LocalRows(experiment)
    agreement = agree([rows.describe(name) for name in rows.names], experiment)
    assert not rows._kept
    assert len(rows.encode("a", agreement).train) == 13


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_the_next_run_in_a_process_sees_changed_rows(tmp_path, experiment, engine):
    losses = []
    for number, offset in enumerate((0.0, 50.0)):
        write(tmp_path, offset)
        out = tmp_path / f"run-{number}"
        losses.append(simulate(experiment, engine=engine, out=out)["final"]["test"]["loss"])
    assert losses[1] > 10 * losses[0]
    close_sessions()
    assert _open_rows.cache_info().currsize == 0


def test_rows_that_do_not_fit_in_memory_are_told_with_a_way_out(monkeypatch):
    def crowded(*_):
        raise MemoryError

    experiment = load_experiment("digits", [])
    rows = LocalRows(experiment)
    monkeypatch.setattr("client.session.prepare", crowded)
    with pytest.raises(DataError, match=r"its rows do not fit in memory; set data\.memory to"):
        rows.describe(rows.names[0])
