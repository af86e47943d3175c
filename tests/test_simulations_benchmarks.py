"""The benchmark suite: deterministic rows, contenders that do the same work, and the arena."""

import itertools
import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from typer.testing import CliRunner

from client.batches import label_patterns
from common.experiment import Experiment
from simulations.benchmarks.__main__ import app, choose
from simulations.benchmarks.agreement import compare_trunks, read_trunk
from simulations.benchmarks.arena import Arena, Settings
from simulations.benchmarks.contenders import CONTENDERS, PLAIN, USUAL
from simulations.benchmarks.figures import summarise
from simulations.benchmarks.live import ContenderError, Live
from simulations.benchmarks.measure import ROOT, start
from simulations.benchmarks.processes import cpu_s, family, memory
from simulations.benchmarks.rows import TASKS, deal_digits, drop_labels, resample_digits
from simulations.benchmarks.tables import print_measurement
from simulations.benchmarks.workloads import WORKLOADS, make_experiment, write_rows

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

TOY = """
import socket, sys
import numpy as np
from simulations.benchmarks.turns import Stopped, Turns
turns, rounds = Turns(socket.socket(fileno=int(sys.argv[2]))), 0
try:
    while True:
        rounds += 1
        if rounds == {last}:
            sys.exit("no more")
        turns.end_round(lambda: {{"w": np.array([{weight}, rounds], dtype=np.float32)}})
except Stopped:
    pass
"""


def start_toy(folder, weight=1.0, last=0):
    code = TOY.format(weight=weight, last=last)
    return Live([sys.executable, "-c", code, "job"], {"PYTHONPATH": str(ROOT)}, folder / "log")


@pytest.fixture
def small_work(monkeypatch):
    """Workloads cut down so that three rounds of them are quick."""
    small = {
        "W1": partial(deal_digits, clients=100),
        "uneven": partial(resample_digits, sizes=[2, 40, 7, 100]),
        "tasks": partial(drop_labels, sizes=[18] * 7, missing=0.3),
    }
    for name, make_rows in small.items():
        drawn = 10 if name == "W1" else 3
        work = replace(WORKLOADS[name], make_rows=make_rows, clients_per_round=drawn)
        monkeypatch.setitem(WORKLOADS, name, work)


def test_rows_are_the_same_each_time(tmp_path):
    first, again = (write_rows("W1", tmp_path / folder) for folder in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()


def test_rows_are_written_once(tmp_path):
    changed = write_rows("W1", tmp_path).stat().st_mtime_ns
    assert write_rows("W1", tmp_path).stat().st_mtime_ns == changed


def test_all_digits_are_dealt_to_clients_of_17_or_18():
    columns = deal_digits(np.random.default_rng(0), clients=100)
    assert set(np.bincount(columns["client"]).tolist()) == {17, 18}
    assert len(columns["digit"]) == 1797


@pytest.mark.parametrize("missing", [0.3, 1.0])
def test_unlike_tasks_leave_every_row_a_label_and_every_set_of_tasks_a_client(missing):
    columns = drop_labels(np.random.default_rng(0), sizes=[18] * 14, missing=missing)
    labelled = ~np.isnan(np.stack([columns[task] for task in TASKS]))
    assert labelled.any(axis=0).all()
    held = {tuple(labelled[:, columns["client"] == c].any(axis=1)) for c in range(14)}
    assert held == set(itertools.product([False, True], repeat=3)) - {(False,) * 3}


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_is_an_experiment_of_which_no_round_evaluates(name, tmp_path):
    experiment = make_experiment(name, tmp_path / "rows.npz")
    assert isinstance(experiment, Experiment)
    assert experiment.data.validation == experiment.data.test == 0
    assert experiment.evaluation.every >= experiment.federation.rounds


@pytest.mark.parametrize("name", ["W1", "uneven", "tasks"])
def test_the_plain_loop_ends_with_the_trunk_of_loopback(name, tmp_path, small_work):
    from server.run_folder import RunFolder
    from simulations.benchmarks.plain import read_clients, train_rounds
    from simulations.simulate import simulate

    rows = write_rows(name, tmp_path)
    experiment = make_experiment(name, rows)
    *_, trunk = itertools.islice(train_rounds(experiment, read_clients(experiment)), 3)
    federation = experiment.federation.model_copy(update={"rounds": 3})
    ours = experiment.model_copy(update={"federation": federation})
    simulate(ours, engine="loopback", out=tmp_path / "run")
    _, expected = RunFolder(tmp_path / "run").checkpoints().load(ours.fingerprint())
    plain = {key: values.numpy() for key, values in trunk.items()}
    assert compare_trunks(plain, expected).relative_difference < 1e-5


def test_the_plain_loop_knows_a_client_without_a_label_of_some_task(tmp_path, small_work):
    from simulations.benchmarks.plain import read_clients

    clients = read_clients(make_experiment("tasks", write_rows("tasks", tmp_path)))
    assert list(clients["0"].targets) == ["digit"]
    assert list(clients["6"].targets) == list(TASKS)
    np.testing.assert_array_equal(clients["6"].patterns, label_patterns(clients["6"].labelled))


def test_a_contender_that_did_other_work_has_no_ratio(tmp_path):
    starts = {
        PLAIN: start_toy,
        "same": start_toy,
        "other": partial(start_toy, weight=1.1),
        "mortal": partial(start_toy, last=3),
        "peer": partial(start, "", None),
    }
    settings = Settings(cycles=3, turn_s=1e-4, soak_rounds=1000)
    figures = summarise(Arena(settings, tmp_path).run(starts))
    assert figures["same"]["ratio"]["cycles"] == 3
    assert figures["same"]["memory-at-end"]["after-rounds"] == 1000
    assert figures["other"]["rounds-per-turn"] >= 1
    assert "ratio" not in figures["other"]
    assert figures["mortal"]["skipped"] == "ended with exit code 1: no more"
    assert figures["peer"]["skipped"].startswith("needs --peers")


def test_without_the_plain_loop_there_is_nothing_to_measure(tmp_path):
    starts = {PLAIN: partial(start_toy, last=1), "other": start_toy}
    with pytest.raises(ContenderError, match="no more"):
        Arena(Settings(cycles=1), tmp_path).run(starts)


def test_trunks_of_other_shapes_are_not_the_same():
    one, other = {"w": np.ones(3, np.float32)}, {"w": np.ones((3, 1), np.float32)}
    assert not compare_trunks(one, other).is_same


def test_a_trunk_with_nan_is_not_the_same():
    one, other = {"w": np.array([1, np.nan], np.float32)}, {"w": np.ones(2, np.float32)}
    assert not compare_trunks(one, other).is_same


def test_a_stopped_contender_leaves_no_process(tmp_path):
    live = start_toy(tmp_path)
    live.first_round()
    assert live.memory().processes == 1
    assert cpu_s(live.process.pid) > 0
    live.save_trunk(tmp_path / "trunk.npz")
    assert read_trunk(tmp_path / "trunk.npz")["w"].tolist() == [1, 1]
    live.stop()
    assert not family(live.process.pid)
    with pytest.raises(ContenderError, match="exit code 0"):
        live.turn(1)


def test_memory_of_an_ended_process_is_nothing():
    assert memory([2**22 + 1]).processes == 0


@pytest.mark.parametrize(
    "arguments", [["--work", "W9"], ["--contenders", "plain,nobody"], ["--peers", "/no/python"]]
)
def test_bad_arguments_are_one_line(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {arguments[0]} must be")
    assert arguments[1].rpartition(",")[2] in line


def test_the_plain_loop_always_runs_first():
    assert choose("flower,loopback-1", flower=True) == [PLAIN, "flower", "loopback-1"]
    assert set(USUAL) <= set(CONTENDERS)


def test_a_measurement_prints_as_a_table(capsys):
    from rich.console import Console

    ratio = {"median": 0.5, "lower-quartile": 0.4, "upper-quartile": 0.6, "cycles": 9}
    memory = {"after-rounds": 5, "resident-mb": 300, "proportional-mb": 290, "processes": 1}
    figures = {
        "ratio": ratio,
        "ms-per-round": 12.0,
        "cpu-ms-per-round": 11.0,
        "first-round-s": 3.0,
        "import-torch-s": 2.5,
        "memory": memory,
        "trunk": {"relative-difference": 2e-7},
    }
    measurement = {
        "work": "W1",
        "date": "2026-01-31",
        "machine": {"processor": "abacus", "cores": 2},
        "threads": 1,
        "device": "cpu",
        "others-load-cores": 0.1,
        "contenders": {"batched": figures, "flower": {"skipped": "no [time]"}},
    }
    print_measurement(measurement, Console(width=200))
    printed = capsys.readouterr().out
    assert "0.500 (0.400-0.600)" in printed
    assert "flower: skipped, no [time]" in printed
    json.dumps(measurement)
