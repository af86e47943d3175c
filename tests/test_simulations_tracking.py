"""Trackers: what they are told, and that they change nothing of a run."""

import logging

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError
from common.experiment_file import load_experiment
from simulations import tracking
from simulations.cli import app
from simulations.run_record import read_run
from simulations.tracking import Kind, Tracking, parse_trackers, points_of, settings_of
from tests.test_simulations_report import evaluation, fabricate_run

ROUNDS = ["--set", "federation.rounds=3", "--engine", "batched", "-q"]


class Recorder:
    """A tracker that keeps what it is told, and fails from a call on."""

    def __init__(self, fails_at=None):
        self.told, self.fails_at, self.calls, self.ends = [], fails_at, 0, []

    def log(self, points):
        self.calls += 1
        if self.fails_at is not None and self.calls >= self.fails_at:
            raise OSError("private text")
        self.told += points

    def close(self, *, is_whole):
        self.ends.append(is_whole)


@pytest.fixture
def recorders(monkeypatch):
    """Trackers "good" and "bad", of which the second fails at its second round."""
    made = {"good": Recorder(), "bad": Recorder(fails_at=2)}

    class Module:
        def __init__(self, name):
            self.open_tracker = lambda folder, experiment, run, group: made[name]

    table = {name: Kind("made up", (), name) for name in made}
    monkeypatch.setattr(tracking, "TRACKERS", table)
    monkeypatch.setattr(tracking, "import_module", Module)
    return made


@pytest.fixture
def run(tmp_path):
    fabricate_run(tmp_path / "run", rounds=4)
    return read_run(tmp_path / "run")


def test_a_line_is_told_figure_by_figure(run):
    line = {**run.rounds[2], "privacy": {"client": {"epsilon": 1.5, "budget": None}}}
    line["train"]["tasks"]["digit"]["loss"] = float("nan")
    told = {point.tag: (point.value, point.step) for point in points_of(line)}
    digit = evaluation(run.experiment, 2, 10)["validation"]["tasks"]["digit"]
    assert told["validation/digit/accuracy"] == (digit["accuracy"], 2)  # of the trunk before it
    assert told["validation/digit/spread-p10"] == (digit["spread"]["p10"], 2)
    assert told["traffic/sent-bytes"] == (360_000, 3)
    assert told["weight/digit"] == (1.0, 3)
    assert told["privacy/client/epsilon"] == (1.5, 3)
    assert "privacy/client/budget" not in told
    assert "train/digit/loss" not in told


def test_no_tracker_is_told_the_names_of_clients():
    trace = "federation.availability=['client,from-round,to-round', 'ward-7,1,3']"
    experiment = load_experiment("digits", [trace, "data.clients=['ward-7', 'ward-8']"])
    settings = settings_of(experiment)
    assert "ward-7" in str(experiment)
    assert "ward" not in str(settings)
    assert settings["training.lr"] == experiment.training.lr


def test_trackers_are_told_of_every_round_and_of_the_last_evaluation(run, recorders):
    tracker = Tracking(["good"], run.path, run.experiment)
    for line in run.rounds:
        tracker.on_round(line)
    tracker.finish(run.results)
    tracker.close()
    steps = [p.step for p in recorders["good"].told if p.tag == "test/digit/accuracy"]
    assert steps == [0, 1, 2, 3, 4]
    assert recorders["good"].ends == [True]


def test_a_resumed_run_is_told_whole(run, recorders):
    tracker = Tracking(["good"], run.path, run.experiment)
    tracker.on_round(run.rounds[3])
    tracker.close()
    steps = [p.step for p in recorders["good"].told if p.tag == "traffic/sent-bytes"]
    assert steps == [1, 2, 3, 4]
    assert recorders["good"].ends == [False]  # it was interrupted


def test_a_tracker_that_fails_is_let_go_with_one_warning(run, recorders, caplog):
    tracker = Tracking(["bad", "good"], run.path, run.experiment)
    with caplog.at_level(logging.WARNING, "fedmtl"):
        for line in run.rounds:
            tracker.on_round(line)
        tracker.close()
    (warning,) = caplog.messages
    assert warning.startswith("tracker bad failed and is told no more of this run (OSError")
    assert "private text" not in warning
    assert recorders["bad"].calls == 2
    assert recorders["good"].calls == 4


def test_a_tracker_that_cannot_open_is_one_warning(run, monkeypatch, caplog):
    def import_nothing(name):
        raise ImportError(name)

    monkeypatch.setattr(tracking, "import_module", import_nothing)
    tracker = Tracking(["tensorboard"], run.path, run.experiment)
    with caplog.at_level(logging.WARNING, "fedmtl"):
        for line in run.rounds:
            tracker.on_round(line)
    assert len(caplog.messages) == 1


def test_unknown_trackers_and_missing_packages_are_a_line_each(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        parse_trackers("tensorbord,tensorboard,mlflow")
    unknown, board, mlflow = str(caught.value).splitlines()
    assert "got 'tensorbord'. Did you mean 'tensorboard'?" in unknown
    assert "--track tensorboard needs tensorboard, which is not installed" in board
    assert 'pip install "fedmtl[tracking]"' in mlflow


def test_a_tracker_named_twice_is_told_once():
    pytest.importorskip("tensorboard")
    assert parse_trackers("tensorboard, tensorboard") == ["tensorboard"]


@pytest.fixture
def fedmtl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_wrong_tracker_is_told_before_a_folder_is_made(fedmtl, tmp_path):
    result = fedmtl("simulate", *ROUNDS, "--out", "run", "--track", "nothing")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --track must be some of ")
    assert not (tmp_path / "run").exists()


def test_a_run_is_the_same_whether_a_tracker_follows_fails_or_is_not_there(
    fedmtl, tmp_path, recorders
):
    assert fedmtl("simulate", *ROUNDS, "--out", "plain").exit_code == 0
    tracked = fedmtl("simulate", *ROUNDS, "--out", "tracked", "--track", "good,bad")
    assert tracked.exit_code == 0, tracked.output
    assert tracked.stderr.count("tracker bad failed") == 1
    assert {p.step for p in recorders["good"].told} == {0, 1, 2, 3}
    one, two = (read_run(tmp_path / name) for name in ("plain", "tracked"))
    assert one.experiment.fingerprint() == two.experiment.fingerprint()
    assert one.results["final"] == two.results["final"]
    assert [line["train"] for line in one.rounds] == [line["train"] for line in two.rounds]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of MLflow's own
def test_mlflow_groups_the_runs_of_a_comparison(fedmtl, tmp_path, monkeypatch, jobs):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = fedmtl(
        "compare", "digits", "--set", "federation.rounds=1", "--track", "mlflow", "--out", "cmp",
        "--vary", "training.lr=0.1,0.2", "--no-yardstick", "--seeds", "1", "--jobs", jobs,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "tracker" not in made.stderr  # two processes made no tables at the same time
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    number = client.get_experiment_by_name("digits").experiment_id
    runs = client.search_runs([number], "tags.group = 'cmp'")
    assert {run.info.run_name for run in runs} == {
        "cmp/seed-0/training.lr=0.1",
        "cmp/seed-0/training.lr=0.2",
    }
    assert {run.info.status for run in runs} == {"FINISHED"}


def board_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return board


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of TensorBoard's own
def test_tensorboard_shows_what_the_run_folder_holds_after_a_resume_too(fedmtl, tmp_path):
    pytest.importorskip("tensorboard")
    assert fedmtl("simulate", *ROUNDS, "--out", "run").exit_code == 0  # not tracked
    more = ["--resume", "run", "--set", "federation.rounds=5", "-q", "--track", "tensorboard"]
    result = fedmtl("simulate", *more)
    assert result.exit_code == 0, result.output
    scalars = board_of(tmp_path / "run").Scalars("validation/digit/accuracy")
    by_file = [
        (e["trunk-round"], e["validation"]["tasks"]["digit"]["accuracy"])
        for e in read_run(tmp_path / "run").evaluations
    ]
    assert [scalar.step for scalar in scalars] == [0, 1, 2, 3, 4, 5]
    assert [s.value for s in scalars] == pytest.approx([value for _, value in by_file])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of MLflow's own
def test_mlflow_has_one_run_with_settings_and_figures_after_a_resume(fedmtl, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert fedmtl("simulate", *ROUNDS, "--out", "run", "--track", "mlflow").exit_code == 0
    more = ["--resume", "run", "--set", "federation.rounds=5", "-q", "--track", "mlflow"]
    assert fedmtl("simulate", *more).exit_code == 0
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    number = client.get_experiment_by_name("digits").experiment_id
    (run,) = client.search_runs([number])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["federation.rounds"] == "5"
    history = client.get_metric_history(run.info.run_id, "validation/digit/accuracy")
    assert [metric.step for metric in history] == [0, 1, 2, 3, 4, 5]
