"""What the report takes from beside the run, what it saves, and that a kill leaves it whole."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from common.errors import FedMTLError
from common.experiment_file import load_experiment
from simulations.charts import Chart, gradient_charts, rate_chart
from simulations.cli import app
from simulations.evaluation.evaluate import evaluate
from simulations.figure_files import compose, parse_formats, sheet_of, write_figures
from simulations.report import collect_figures, write_report
from simulations.run_record import read_run
from simulations.simulate import simulate
from tests.recorded import SMALL
from tests.test_simulations_report import change_results, charts_of, fabricate_run, text_of

runner = CliRunner()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts") / "run"
    settings = [*SMALL, "training.schedule=cosine", "loss.record=gradients"]
    simulate(load_experiment("digits", settings), engine="loopback", out=folder)
    return folder


@pytest.fixture
def run(tmp_path):
    fabricate_run(tmp_path)
    return tmp_path


def test_evaluate_puts_its_figures_on_the_report_page(trained):
    before = text_of(write_report(trained))
    assert f"fedmtl evaluate {trained}" in before
    told = runner.invoke(app, ["evaluate", str(trained)])
    assert told.exit_code == 0, told.output
    after = text_of(trained / "report.html")
    assert f"fedmtl evaluate {trained}" not in after
    figures = collect_figures(trained)
    for name in ("digit-confusion", "parity-roc-with-areas", "digit-reliability", "skill",
                 "parity-precision-by-recall-with-average-precision",
                 "ink-residuals-predicted-less-true-ink"):  # fmt: skip
        assert name in figures


def test_an_evaluation_of_another_round_is_not_shown(trained, tmp_path):
    found = evaluate(trained)
    path = trained / "evaluation.json"
    path.write_text(json.dumps({**found, "round": found["round"] - 1}))
    assert "digit-confusion" not in collect_figures(trained)
    path.unlink()


def test_a_broken_evaluation_is_told(run):
    (run / "evaluation.json").write_text("[1]")
    with pytest.raises(FedMTLError, match=r"evaluation\.json cannot be read.*fedmtl evaluate"):
        write_report(run)


def test_the_learning_rate_is_drawn_where_it_changes(trained, run):
    rates = [line["lr"] for line in read_run(trained).rounds]
    assert rate_chart(read_run(trained)).traces[0]["y"] == rates
    assert rate_chart(read_run(run)) is None


def test_the_tasks_cosines_are_drawn_over_rounds(trained):
    record = read_run(trained)
    chart = next(c for c in gradient_charts(record) if c.title == "Gradient agreement")
    told = [line["train"]["tasks"]["ink"]["cosine"] for line in record.rounds]
    assert chart.traces[2]["y"] == told
    assert all(-1 <= value <= 1 for value in told)


def test_the_worst_tenth_of_a_metric_is_on_its_bad_side(run):
    lines = {chart["title"]: chart["traces"] for chart in charts_of(write_report(run))}
    cases = {"digit: Validation accuracy ↑": True, "stroke: Validation rmse ↓": False}
    for title, is_below in cases.items():
        named = {trace["name"]: trace["y"] for trace in lines[title]}
        pairs = zip(named["worst tenth"], named["median client"], strict=True)
        assert all((worst < middle) == is_below for worst, middle in pairs)


def test_fairness_is_told_from_the_clients_figures(run):
    results = json.loads((run / "results.json").read_text())
    for number, client in enumerate(results["clients"].values()):
        client["tasks"]["stroke"]["test"]["rmse"] = 1.0 + number
    change_results(run, clients=results["clients"])
    assert "stroke rmse ↓ 10.00 10.00" in text_of(write_report(run))  # worst, and worst tenth


def test_where_time_went_is_drawn_if_it_was_measured(run):
    assert "where-a-round-s-time-went" not in collect_figures(run)
    lap = {"rounds": 2, "seconds": 4.0, "sections": {"forward": {"seconds": 3.0, "share": 0.75}}}
    (run / "profile.json").write_text(json.dumps({"first": None, "others": lap}))
    assert collect_figures(run)["where-a-round-s-time-went"].traces[0]["x"] == [1.5]


def test_figures_are_written_as_data(run, tmp_path):
    out = tmp_path / "figures"
    told = runner.invoke(app, ["report", str(run), "--figures", str(out), "--format", "csv,json"])
    assert told.exit_code == 0, told.output
    figures = collect_figures(run)
    assert {path.name for path in out.iterdir()} == {
        f"{name}.{form}" for name in figures for form in ("csv", "json")
    }
    with (out / "digit-loss.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = [row for row in rows if row["series"] == "training"]
    losses = [line["train"]["tasks"]["digit"]["loss"] for line in read_run(run).rounds]
    assert [float(row["y"]) for row in trained] == losses


def test_saved_figures_hold_no_names_of_colours(run):
    for chart in collect_figures(run).values():
        assert '"$' not in json.dumps(compose(chart))


def test_names_of_the_users_are_whole_in_data():
    trace = {"name": "a &lt;b&gt;", "x": [1], "y": [2.5], "type": "scatter"}
    assert sheet_of(Chart("t", [trace])) == [["series", "x", "y"], ["a <b>", 1, 2.5]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "csv"], "--format is of --figures"),
        (["--figures", "out", "--format", "pdf"], "must name some of csv, json, svg, png"),
        (["--figures", "out", "--format", ","], "must name some of"),
    ],
)
def test_bad_input_is_one_line(run, words, told):
    result = runner.invoke(app, ["report", str(run), *words])
    assert result.exit_code == 2
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (run / "report.html").exists()


def test_figures_of_several_runs_are_refused(run):
    result = runner.invoke(app, ["report", str(run), str(run), "--figures", "out"])
    assert "--figures is for one run, got 2" in result.stderr


def test_pictures_without_their_package_are_refused(monkeypatch):
    monkeypatch.setattr("simulations.figure_files.find_spec", lambda name: None)
    with pytest.raises(FedMTLError, match=r'pip install "fedmtl\[figures\]"'):
        parse_formats("svg")


@pytest.mark.slow
def test_pictures_are_written(run, tmp_path):
    pytest.importorskip("kaleido")
    figures = dict(list(collect_figures(run).items())[:2])
    try:
        write_figures(figures, tmp_path / "out", ("svg", "png"))
    except FedMTLError as error:
        pytest.skip(str(error))
    for name in figures:
        assert "<svg" in (tmp_path / "out" / f"{name}.svg").read_text()[:200]
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


KILLED = """
import sys
from pathlib import Path
from simulations.page_parts import write_page
from simulations.report import make_page
from simulations.run_record import read_run
run = Path(sys.argv[1])
page = make_page(read_run(run))
print("ready", flush=True)
while True:  # so that a kill falls into the writing
    write_page(run / "report.html", page)
"""


@pytest.mark.slow
def test_a_report_that_is_killed_leaves_a_whole_page_and_the_next_cleans_up(tmp_path):
    fabricate_run(tmp_path, clients=1000, rounds=500)
    whole = write_report(tmp_path).read_bytes()
    for number in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.011 * number)
            os.kill(process.pid, signal.SIGKILL)
        assert (tmp_path / "report.html").read_bytes() == whole
    (tmp_path / "report.html.partial").write_text("torn")  # wherever the kills fell
    write_report(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
