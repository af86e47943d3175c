"""fedmtl yardstick: a run's tasks against themselves trained alone."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from common.errors import FedMTLError
from common.experiment_file import load_experiment
from simulations import yardstick
from simulations.cli import app
from simulations.report import write_report
from simulations.run_record import read_run
from simulations.simulate import simulate
from simulations.yardstick import FEDERATED, LOCAL, alone, measure_yardsticks
from tests.recorded import SMALL
from tests.test_simulations_report import change_results, fabricate_run, text_of

runner = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yardstick") / "run"
    simulate(load_experiment("digits", SMALL), engine="loopback", out=folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_each_task_is_trained_without_the_others(run):
    record = read_run(run)
    single = alone(record.experiment, "ink", record)
    assert single.task_weights() == {"digit": 0.0, "parity": 0.0, "ink": 1.0}
    assert single.trunk == record.experiment.trunk
    assert single.data == record.experiment.data
    assert single.seed == record.experiment.seed


def test_a_task_without_a_weight_does_not_choose_the_round(run):
    record = read_run(run)
    evaluation = record.experiment.evaluation.model_copy(update={"best_by": "digit"})
    judged = record.experiment.model_copy(update={"evaluation": evaluation})
    assert alone(judged, "digit", record).evaluation.best_by == "digit"
    assert alone(judged, "ink", record).evaluation.best_by == "loss"


def test_gains_are_relative_to_the_task_alone(run):
    found = measure_yardsticks(run, local=True)
    results = json.loads((run / "results.json").read_text())["best"]["test"]["tasks"]
    assert found["run"]["digit"] == results["digit"]["accuracy"]
    for name in (FEDERATED, LOCAL):
        own = found["yardsticks"][name]
        for task, figure in own["tasks"].items():
            gain = 100 * (found["run"][task] - figure) / abs(figure)  # all three: higher is better
            assert own["gains"][task] == pytest.approx(gain)
        assert own["delta-m"] == pytest.approx(sum(own["gains"].values()) / 3)
    alone_run = json.loads((run / "yardstick" / "ink" / "results.json").read_text())
    assert found["yardsticks"][FEDERATED]["tasks"]["ink"] == pytest.approx(
        alone_run["best"]["test"]["tasks"]["ink"]["r2"]
    )


def test_what_was_interrupted_goes_on_with_what_is_missing(run, monkeypatch):
    first = measure_yardsticks(run)
    (run / "yardstick" / "ink" / "results.json").unlink()
    kept = (run / "yardstick" / "digit" / "results.json").stat().st_mtime_ns
    trained = []
    whole = yardstick.train_federation
    monkeypatch.setattr(
        yardstick,
        "train_federation",
        lambda experiment, engine, out: trained.append(out.name) or whole(experiment, engine, out),
    )
    assert measure_yardsticks(run) == first
    assert trained == ["ink"]
    assert (run / "yardstick" / "digit" / "results.json").stat().st_mtime_ns == kept


def test_clients_without_the_task_take_no_part(run):
    results = json.loads((run / "results.json").read_text())
    del results["clients"]["client-003"]["tasks"]["ink"]
    change_results(run, clients=results["clients"])
    record = read_run(run)
    assert "client-003" not in alone(record.experiment, "ink", record).data.clients
    assert len(alone(record.experiment, "ink", record).data.clients) == 9
    assert alone(record.experiment, "digit", record).data.clients == ()


def test_the_command_writes_figures_and_the_report(run):
    told = runner.invoke(app, ["yardstick", str(run)])
    assert told.exit_code == 0, told.output
    assert "Delta-m" in told.stdout
    found = json.loads((run / "yardstick.json").read_text())
    page = text_of(run / "report.html")
    assert "Gain over single-task training" in page
    assert f"{found['yardsticks'][FEDERATED]['delta-m']:+.2f}%" in page


def test_the_report_says_how_to_get_gains_and_has_no_empty_figure(tmp_path):
    fabricate_run(tmp_path)
    page = text_of(write_report(tmp_path))
    assert f"fedmtl yardstick {tmp_path}" in page
    assert "Gain over single-task training" not in page


def test_gains_of_another_experiment_are_not_shown(tmp_path):
    fabricate_run(tmp_path)
    told = {"fingerprint": "other", "metrics": {}, "run": {}, "yardsticks": {}}
    (tmp_path / "yardstick.json").write_text(json.dumps(told))
    assert "fedmtl yardstick" in text_of(write_report(tmp_path))


def test_a_broken_file_is_told(tmp_path):
    fabricate_run(tmp_path)
    (tmp_path / "yardstick.json").write_text("{}")
    with pytest.raises(FedMTLError, match=r"yardstick\.json cannot be read.*fedmtl yardstick"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("tasks", "is_over", "told"),
    [
        ({"digit": {"kind": "multiclass", "classes": 10}}, True, "run of two tasks or more"),
        (None, False, "must be a run that ended"),
    ],
)
def test_runs_that_cannot_serve_are_refused(tmp_path, tasks, is_over, told):
    fabricate_run(tmp_path, **({"tasks": tasks} if tasks else {}))
    if not is_over:
        (tmp_path / "results.json").unlink()
    with pytest.raises(FedMTLError, match=told):
        measure_yardsticks(tmp_path)


def test_a_run_without_test_figures_is_refused(tmp_path):
    fabricate_run(tmp_path)
    nothing = {"trunk-round": 20, "clients": 10, "validation": {}, "test": {}}
    change_results(tmp_path, final=nothing, best=nothing)
    with pytest.raises(FedMTLError, match="must have figures on test rows"):
        measure_yardsticks(tmp_path)
