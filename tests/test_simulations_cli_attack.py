"""fedmtl attack, and fedmtl simulate --record-wire."""

import json

import pytest
from typer.testing import CliRunner

from simulations.cli import app
from tests.recorded import ONE, ONE_ROW, SMALL

runner = CliRunner()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    settings = [word for setting in [*SMALL, *ONE_ROW] for word in ("--set", setting)]
    told = runner.invoke(
        app, ["simulate", "digits", *settings, "--record-wire", "-q", "--out", str(folder)]
    )
    assert told.exit_code == 0, told.output
    return folder


def test_an_inversion_starts_from_a_recorded_run(run, tmp_path):
    words = ["attack", "inversion", str(run), "--client", ONE, "--method", "analytic"]
    told = runner.invoke(app, [*words, "--out", str(tmp_path)])
    assert told.exit_code == 0, told.output
    assert "The attack takes away 100.0% of the squared error of the mean row" in told.output
    figures = json.loads((tmp_path / "attack-inversion.json").read_text())
    assert figures["client"] == ONE
    assert figures["errors"]["attack"]["psnr-db"]["value"] > 60


def test_every_option_of_an_inversion_reaches_it(run, tmp_path):
    options = {
        "method": "cosine", "heads": "random", "labels": "learned", "local": "unrolled",
        "rows": 1, "iterations": 3, "restarts": 2, "total-variation": 0.5, "seed": 4,
        "lr": 0.05,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    told = runner.invoke(
        app,
        ["attack", "inversion", str(run), "--client", ONE, "--round", "2", "--json",
         "--out", str(tmp_path), *words],
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    settings = {name.replace("_", "-"): v for name, v in figures["settings"].items()}
    assert settings == options
    assert figures["round"] == 2


@pytest.mark.parametrize("kind", ["labels", "tasks"])
def test_labels_and_tasks_are_looked_for(run, tmp_path, kind):
    words = ["attack", kind, str(run), "--shadows", "12", "--seed", "1", "--out", str(tmp_path)]
    told = runner.invoke(app, words)
    assert told.exit_code == 0, told.output
    figures = json.loads((tmp_path / f"attack-{kind}.json").read_text())
    assert figures["settings"]["shadows"] == 12
    assert figures["settings"]["seed"] == 1
    assert (tmp_path / f"attack-{kind}.html").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--client", "nobody"], "error: --client must name one of the 5 clients that answered"),
        (["--round", "9"], "error: --round must be a recorded round (1 to 2), got 9"),
        (["--method", "guess"], "error: --method must be one of analytic, dlg, cosine"),
        (["--local", "rolled"], "error: --local must be one of one-gradient, unrolled"),
    ],
)
def test_bad_input_is_one_line(run, words, line):
    told = runner.invoke(app, ["attack", "inversion", str(run), *words])
    assert told.exit_code == 2
    assert told.stderr.startswith(line)
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["inversion", "labels", "tasks"])
def test_a_folder_without_a_record_is_refused(tmp_path, kind):
    told = runner.invoke(app, ["attack", kind, str(tmp_path)])
    assert told.exit_code == 2
    assert "is no run folder" in told.stderr
    (tmp_path / "experiment.toml").write_text("")
    told = runner.invoke(app, ["attack", kind, str(tmp_path)])
    assert told.exit_code == 2
    assert "fedmtl simulate --record-wire" in told.stderr


def test_a_resumed_run_records_as_it_did(run):
    told = runner.invoke(app, ["simulate", "--resume", str(run), "--record-wire"])
    assert told.exit_code == 2
    assert "record of what travels" in told.stderr


def test_the_group_tells_its_attacks():
    told = runner.invoke(app, ["attack", "--help"])
    assert all(name in told.output for name in ("inversion", "labels", "tasks"))
