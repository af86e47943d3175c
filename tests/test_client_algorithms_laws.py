"""What holds for every algorithm of the client's side, whatever it does."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import client.app
from client.kept_model import open_kept
from client.session import close_sessions
from common.algorithms import ALGORITHMS
from common.losses import ROW_LOSSES
from simulations.baselines import read_clients
from simulations.kept_run import open_run
from simulations.simulate import simulate
from tests.algorithm_runs import assert_close, assert_equal, plan, run, stop_after, write_clients

SHARING_TRUNK = [name for name, line in ALGORITHMS.items() if line.shares == "trunk"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of rows: of clients that hold all tasks, and of such that do not."""
    root = tmp_path_factory.mktemp("rows")
    return {
        "whole": write_clients(root / "whole", lacking=""),
        "partial": write_clients(root / "partial"),
    }


@pytest.fixture
def planned(folders):
    """Make an experiment; one client lacks a task, where the algorithm can do with that."""

    def make(algorithm, *, whole=False, **tables):
        needs_all = whole or ALGORITHMS[algorithm].shares == "all"
        return plan(folders["whole" if needs_all else "partial"], algorithm, **tables)

    return make


# The engines --------------------------------------------------------------------------------------

SAMPLED = {"clients-per-round": 2, "rounds": 4}
BATCH_NORM = {"norm": "batch", "norm-parameters": "local"}
DROPOUT = {"dropout": 0.3}
CASES = {
    "plain": {},
    "sampled": {"federation": SAMPLED},
    "uncertainty": {"loss": {"weighting": "uncertainty"}, "federation": SAMPLED},
    "own uncertainty": {
        "loss": {"weighting": "uncertainty", "scope": "local"},
        "federation": SAMPLED,
    },
    "batch norm": {"trunk": {"norm": "batch"}, "federation": SAMPLED},
    "batch norm at home": {"trunk": BATCH_NORM, "federation": SAMPLED},
    "statistics at home": {
        "trunk": {"norm": "batch", "norm-parameters": "local-statistics"},
        "federation": SAMPLED,
    },
    "dropout": {"trunk": DROPOUT, "federation": SAMPLED},
    "adam": {"training": {"optimiser": "adam", "lr": 0.01}},
    "rates": {"training": {"weight-decay": 0.1, "l1": 0.01}},
    "personal": {"evaluation": {"model": "personal"}, "federation": SAMPLED},
    "personal by message": {
        "evaluation": {"model": "personal", "by": "message"},
        "federation": SAMPLED,
    },
    "per-task heads": {"federation": SAMPLED | {"heads": "per-task"}},
    "late": {"federation": {"availability": ["client,from-round,to-round", "b,3,9", "c,9,9"]}},
}


def merge(federation, tables):
    """Merge a table over those of a case."""
    return {**tables, "federation": {**tables.get("federation", {}), **federation}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_batched_equals_loopback(planned, tmp_path, algorithm, case):
    try:
        experiment = planned(algorithm, **CASES[case])
    except ValueError as e:
        pytest.skip(str(e)[:300])
    one = run(experiment, tmp_path / "loopback")
    other = run(experiment, tmp_path / "batched", "batched")
    assert_close(one, other)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_number_of_workers_changes_no_bit(planned, tmp_path, algorithm):
    experiment = planned(algorithm, federation={"clients-per-round": 3}, trunk=DROPOUT)
    one = run(experiment, tmp_path / "one")
    assert_equal(one, run(experiment, tmp_path / "two", workers=2))


# What a run that is cut in two keeps --------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("case", ["sampled", "own uncertainty", "batch norm at home", "personal"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_stopped_in_the_middle_and_resumed_is_the_run_never_stopped(
    planned, tmp_path, algorithm, case, engine
):
    experiment = planned(algorithm, **CASES[case])
    with pytest.raises(KeyboardInterrupt):
        simulate(experiment, engine=engine, out=tmp_path / "cut", listener=stop_after(2))
    cut = run(experiment, tmp_path / "cut", engine, resume=True)
    assert_equal(run(experiment, tmp_path / "whole", engine), cut)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("case", ["sampled", "own uncertainty", "batch norm at home", "personal"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_more_rounds_after_the_last_evaluation_are_those_of_a_longer_run(
    planned, tmp_path, algorithm, case, engine
):
    tables = CASES[case]
    short = planned(algorithm, **merge({"rounds": 2}, tables))
    longer = planned(algorithm, **merge({"rounds": 4}, tables))
    run(short, tmp_path / "cut", engine)
    cut = run(longer, tmp_path / "cut", engine, resume=True)
    whole = run(longer, tmp_path / "whole", engine)
    assert cut.lines == whole.lines
    assert_equal(whole, cut)


@pytest.mark.parametrize("case", ["sampled", "own uncertainty", "batch norm at home"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_nodes_that_restart_before_every_message_lose_nothing(
    planned, tmp_path, monkeypatch, algorithm, case
):
    experiment = planned(algorithm, **CASES[case])
    expected = run(experiment, tmp_path / "memory")
    opened = client.app.open_session

    def open_anew(*arguments):
        close_sessions()
        return opened(*arguments)

    monkeypatch.setattr("client.app.open_session", open_anew)
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))
    restarted = run(experiment, tmp_path / "folders")
    for name, values in expected.trunk.items():
        np.testing.assert_array_equal(restarted.trunk[name], values, err_msg=name)
    assert restarted.lines == expected.lines
    assert restarted.results == expected.results
    for name, own in expected.clients.items():
        (place,) = (tmp_path / "state" / "runs").glob(f"*/{name}")
        found = load_file(max(place.glob("own-*")))
        assert found.keys() == own.arrays.keys()
        for array, values in own.arrays.items():
            np.testing.assert_array_equal(found[array], values, err_msg=array)


# What is predicted --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["sampled", "batch norm", "batch norm at home", "per-task heads"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_kept_model_is_the_one_that_was_evaluated_last(
    planned, tmp_path, monkeypatch, algorithm, case
):
    try:
        experiment = planned(algorithm, **CASES[case])
    except ValueError as e:
        pytest.skip(str(e)[:300])
    simulated = run(experiment, tmp_path / "run")
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))
    run(experiment, tmp_path / "folders")
    data, _ = read_clients(experiment)
    for one in data:
        figures = simulated.results["clients"][one.name]["tasks"]
        models = [open_run(tmp_path / "run", one.name), open_kept(tmp_path / "state", "", one.name)]
        for model in models:
            for task in figures:
                expected = figures[task]["test"]["loss"]
                assert loss_on_test(model.build(), experiment, one, task) == pytest.approx(
                    expected, rel=1e-4
                ), (one.name, task)


@torch.inference_mode()
def loss_on_test(model, experiment, data, task):
    rows = data.splits["test"]
    outputs, _ = model(rows.inputs, (task,))
    mask = rows.labelled[task]
    rule = ROW_LOSSES[experiment.tasks[task].kind]
    return float(rule(outputs[task][mask], rows.targets[task][mask]).mean())
