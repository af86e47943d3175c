"""A run that keeps its best trunk ends with it, and clients with the heads of its time."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.kept_model import open_kept
from client.own_arrays import as_of_best, set_aside
from common.best import BestBy
from common.errors import ConfigError
from common.experiment_file import load_experiment
from server.run_folder import RunFolder
from simulations.evaluation.answers import answer_all, open_ended
from simulations.kept_federation import open_federation
from simulations.kept_run import open_run
from simulations.kept_trunk import open_trunk
from simulations.simulate import simulate
from tests.conftest import make_experiment
from tests.test_simulations_engines import assert_same_figures

# Steps that grow far too large: the best trunk is an early one.
WORSENS = [
    "partition.clients=4",
    "federation.rounds=8",
    "trunk.widths=[8]",
    "trunk.activation=tanh",
    "training.lr=0.3",
    "training.schedule=cyclic",
    "training.schedule-options.half=7",
    "training.schedule-options.floor=0.02",
    "evaluation.by=message",
]
KEPT = [*WORSENS, "evaluation.keep=best"]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def rounds_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder: Path, settings: list[str], **how) -> dict:
    simulate(load_experiment("digits", settings), out=folder, **how)
    return results_of(folder)


def test_better_is_lower_loss_or_what_the_metric_says():
    assert BestBy().is_better(1.0, than=2.0)
    assert not BestBy().is_better(2.0, than=2.0)
    assert not BestBy(min_delta=0.5).is_better(1.6, than=2.0)
    assert BestBy("digit", "accuracy").is_better(0.9, than=0.8)
    assert BestBy("ink", "rmse").is_better(0.8, than=0.9)
    assert BestBy().is_better(9.0, than=None)
    assert not BestBy().is_better(float("nan"), than=None)
    assert not BestBy("digit", "accuracy").is_better(float("nan"), than=0.1)


def test_an_experiment_that_lacks_the_task_goes_by_loss():
    experiment = make_experiment(evaluation={"best-by": "flag", "min-delta": 0.25})
    assert BestBy.of(experiment) == BestBy("flag", "accuracy", 0.25)
    single = experiment.model_copy(update={"tasks": {"size": experiment.tasks["size"]}})
    assert BestBy.of(single) == BestBy(min_delta=0.25)


@pytest.mark.parametrize("best_by", ["loss", "digit", "ink"])
def test_the_best_round_is_that_of_the_chosen_figure(tmp_path, best_by):
    found = run(tmp_path / "run", [*WORSENS, f"evaluation.best-by={best_by}"], engine="batched")
    experiment = load_experiment("digits", WORSENS)
    figures = {}
    for line in rounds_of(tmp_path / "run"):
        validation = line["evaluation"]["validation"]
        metric = None if best_by == "loss" else experiment.tasks[best_by].metric_name
        figure = validation["tasks"][best_by][metric] if metric else validation["loss"]
        figures[line["round"]] = figure if best_by == "loss" else -figure
    assert found["best"]["trunk-round"] == min(figures, key=figures.__getitem__)


def test_patience_goes_by_the_chosen_figure(tmp_path):
    more = ["evaluation.best-by=digit", "evaluation.min-delta=0.9", "evaluation.patience=2"]
    found = run(tmp_path / "run", [*WORSENS, *more], engine="batched")
    assert found["stopped"] == "early: no better validation accuracy of digit in 2 evaluations"
    assert (found["rounds"], found["best"]["trunk-round"]) == (3, 1)  # nothing gains 0.9


@pytest.mark.parametrize("how", [{"engine": "loopback"}, {"engine": "batched"}])
def test_the_run_ends_with_what_its_best_round_measured(tmp_path, how):
    found = run(tmp_path / "run", KEPT, **how)
    best = found["best"]
    assert best["trunk-round"] < found["rounds"] == 8  # else the test would not tell
    assert_same_figures(found["final"], best)
    plain = run(tmp_path / "plain", WORSENS, **how)
    assert plain["final"]["trunk-round"] == 8
    assert plain["final"]["validation"]["loss"] > found["final"]["validation"]["loss"]


ALGORITHMS = {
    "drawn": ["federation.clients-per-round=2", "federation.rounds=9"],
    "ditto": ["federation.algorithm=ditto"],
    "weights of its own": ["loss.weighting=uncertainty", "loss.scope=local"],
    "personal": ["evaluation.model=personal"],
    "skewed": ["partition.task-skew=rotate", "partition.tasks-per-client=1"],
}


@pytest.mark.parametrize("case", ALGORITHMS)
def test_engines_return_to_the_same_models(tmp_path, case):
    settings = [*KEPT, *ALGORITHMS[case]]
    for engine in ("loopback", "batched"):
        run(tmp_path / engine, settings, engine=engine)
    one, other = (results_of(tmp_path / e) for e in ("loopback", "batched"))
    assert one["final"]["trunk-round"] == one["best"]["trunk-round"] < one["rounds"]
    assert_same_figures(one["final"], one["best"])
    assert_same_figures(one["final"], other["final"])
    ours, theirs = (open_federation(tmp_path / e) for e in ("loopback", "batched"))
    assert ours.round == theirs.round == one["best"]["trunk-round"]
    for name, array in ours.trunk.items():
        np.testing.assert_allclose(array, theirs.trunk[name], rtol=1e-4, atol=1e-5)
    for client, own in ours.own.items():
        for name, array in own.arrays.items():
            np.testing.assert_allclose(array, theirs.own[client].arrays[name], rtol=1e-3, atol=1e-4)


def test_workers_return_bit_for_bit(tmp_path):
    for workers in (1, 2):
        run(tmp_path / str(workers), KEPT, engine="loopback", workers=workers)
    one, two = (results_of(tmp_path / str(n)) for n in (1, 2))
    assert (one["final"], one["clients"]) == (two["final"], two["clients"])


def test_a_stopped_run_goes_on_to_the_same_best_trunk(tmp_path):
    whole, folder = run(tmp_path / "whole", KEPT, engine="loopback"), tmp_path / "parts"
    run(folder, [*KEPT, "federation.rounds=2"], engine="loopback")
    run(folder, KEPT, engine="loopback", resume=True)
    assert results_of(folder)["final"] == whole["final"]
    assert results_of(folder)["best"] == whole["best"]
    first, second = (open_federation(f) for f in (tmp_path / "whole", folder))
    assert all((array == second.trunk[name]).all() for name, array in first.trunk.items())


def test_everything_that_reads_a_run_folder_reads_the_best_trunk(tmp_path):
    folder = tmp_path / "run"
    found = run(folder, KEPT, engine="batched")
    number = found["best"]["trunk-round"]
    experiment = load_experiment("digits", KEPT)
    progress, last = RunFolder(folder).checkpoints().load(experiment.fingerprint())
    best = load_file(folder / "checkpoint" / progress.files["best"])
    assert any((best[name] != last[name]).any() for name in best)
    federation = open_federation(folder)
    client = next(iter(federation.own))
    model, trunk = open_run(folder, client), open_trunk(folder)
    assert (model.round, trunk.round, federation.round) == (number, number, number)
    for name, array in best.items():
        assert (model.arrays[name] == array).all()
        assert (trunk.arrays[name] == array).all()
    sums = [answers.sums["digit"] for answers in answer_all(open_ended(folder), "test")]
    right, rows = (sum(column) for column in zip(*sums, strict=True))
    assert right / rows == pytest.approx(found["final"]["test"]["tasks"]["digit"]["accuracy"])


def test_a_nodes_state_folder_predicts_with_the_best_trunk_and_its_heads(tmp_path, monkeypatch):
    run(tmp_path / "run", KEPT, engine="loopback")
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))  # as nodes of a deployment have it
    found = run(tmp_path / "disk", KEPT, engine="loopback")
    federation = open_federation(tmp_path / "run")
    for client in federation.own:
        kept, expected = open_kept(tmp_path / "state", client=client), federation.arrays_of(client)
        assert kept.round == found["best"]["trunk-round"] < 8
        assert set(kept.arrays) == set(expected)
        assert all((array == kept.arrays[name]).all() for name, array in expected.items())


def test_a_client_sets_aside_once_and_goes_back_to_that():
    own = {"w": np.array([1.0])}
    kept = {**own, **set_aside(own, 3)}
    trained = {"w": np.array([2.0]), **set_aside(kept, 3)}
    assert as_of_best(trained, 3) == {"w": np.array([1.0])}
    later = {"w": np.array([3.0]), **set_aside(trained, 5)}  # 5 is better, and it had 2 then
    assert as_of_best(later, 5) == {"w": np.array([2.0])}
    assert as_of_best({"w": np.array([9.0])}, 5) == {"w": np.array([9.0])}  # it never trained on
    assert set_aside({}, 2).keys() == {"best.round"}
    assert as_of_best(set_aside({}, 2), 2) == {}


REFUSED = {
    "evaluation.best-by must be one of 'loss', 'digit', 'parity', 'ink', got 'digits'. Did you "
    "mean 'digit'?": ["evaluation.best-by=digits"],
    "'parity', 'ink', got 'nothing'; correct it, or remove it.": ["evaluation.best-by=nothing"],
    "evaluation.keep needs validation rows, got 'best' with data.validation = 0": [
        *KEPT,
        "data.validation=0",
    ],
    "evaluation.best-by needs validation rows, got 'digit'": [
        "evaluation.best-by=digit",
        "data.validation=0",
    ],
    "evaluation.by must be 'message' with evaluation.keep 'best'": ["evaluation.keep=best"],
    "evaluation.keep must be 'last' under federation.algorithm 'fedbabu'": [
        *KEPT,
        "federation.algorithm=fedbabu",
    ],
    "evaluation.keep must be 'last' under federation.strategy 'clustered'": [
        *KEPT,
        "federation.strategy=clustered",
    ],
    "evaluation.min-delta must be a finite number of at least 0, got -0.1": [
        "evaluation.min-delta=-0.1"
    ],
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_judged_or_kept_is_refused_in_a_line(line):
    with pytest.raises(ConfigError) as caught:
        load_experiment("digits", REFUSED[line])
    assert line in str(caught.value)
