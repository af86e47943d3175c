import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from common.errors import CheckpointError
from simulations.cli import app

SHORT = ["--set", "federation.rounds=2"]


@pytest.fixture
def fedmtl(tmp_path, monkeypatch):
    """Run the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def interrupted(monkeypatch):
    """Make every simulation end by Ctrl-C, after its first checkpoint."""

    def simulate(experiment, *, out, **_):
        (out / "checkpoint").mkdir(parents=True)
        (out / "checkpoint" / "checkpoint.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.simulate.simulate", simulate)


def errors_of(result):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return lines


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["simulate"],
        ["compare"],
        ["check"],
        ["report"],
        ["runs"],
        ["list"],
        ["health"],
        ["privacy", "plan"],
        ["privacy", "ledger"],
    ],
)
def test_help_imports_no_heavy_library(command):
    code = (
        "import sys; from typer.testing import CliRunner; from simulations.cli import app; "
        f"result = CliRunner().invoke(app, {[*command, '--help']!r}); assert not result.exit_code; "
        "print(*{'torch', 'flwr', 'pandas', 'pydantic', 'plotly', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("command", ["simulate", "check", "compare"])
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["no-such"], "error: There is no experiment 'no-such'. Known: "),
        (["no-such.toml"], "error: There is no experiment file 'no-such.toml'."),
        (["--set", "training.lr=-1"], "error: training.lr must be a finite number above 0, got"),
        (["--set", "trainin.lr=1"], "error: trainin is no setting. Did you mean 'training'?"),
        (["--data", "nowhere", "--set", "data.source=table"], "error: data.path: "),
        (["--set", "federation.clients-per-round=11"], "error: federation.clients-per-round"),
        (
            ["--set", "federation.min-clients=11"],
            "error: federation.min-clients must be",
        ),
        (["--set", "partition.clients=5000"], "error: partition.clients must be at most 1797"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(fedmtl, tmp_path, command, arguments, error):
    (line,) = errors_of(fedmtl(command, *arguments))
    assert line.startswith(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["simulate", "check"])
def test_the_whole_model_needs_every_task_at_every_client(fedmtl, command):
    skew = ["partition.clients=2", "partition.task-skew=rotate", "partition.tasks-per-client=2"]
    settings = [*skew, "federation.algorithm=whole-model"]
    result = fedmtl(command, *(part for s in settings for part in ("--set", s)))
    assert result.exit_code == 2
    assert "client-000" in result.stderr
    assert "needs every task at every client, lacks 'ink'" in result.stderr


@pytest.mark.parametrize("command", ["simulate", "check"])
def test_an_empty_trunk_cannot_be_shared(fedmtl, command):
    result = fedmtl(command, "--set", "trunk.widths=[]")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: trunk.widths is empty, so there is no trunk to share")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_a_device_that_is_not_there_is_refused(fedmtl, tmp_path, command):
    (line,) = errors_of(fedmtl(command, "--set", "training.device=cuda"))
    assert line.startswith("error: training.device must be a device of this machine (1 cpu")
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_lines_of_their_own(fedmtl):
    assert len(errors_of(fedmtl("check", "--set", "training.lr=-1", "--set", "x=1"))) == 2


def test_an_unknown_engine_names_the_known_ones(fedmtl):
    (line,) = errors_of(fedmtl("simulate", "--engine", "warp"))
    assert line == "error: --engine must be one of loopback, batched, auto, flower, got 'warp'."


def test_a_run_ends_with_a_table_and_the_path_of_its_report(fedmtl, tmp_path):
    result = fedmtl("simulate", *SHORT, "--out", "run")
    assert result.exit_code == 0, result.output
    assert "accuracy" in result.stdout
    assert result.stdout.splitlines()[-1] == "report: run/report.html"
    assert (tmp_path / "run" / "report.html").is_file()
    assert "round 2/2" in result.stderr


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_report_that_cannot_be_written_is_a_line_after_the_figures(fedmtl, monkeypatch, form):
    def full(run):
        raise CheckpointError(f"{run}/report.html cannot be written: No space left on device.")

    monkeypatch.setattr("simulations.report.write_report", full)
    result = fedmtl("simulate", *SHORT, "--out", "run", "--quiet", *form)
    assert result.exit_code == 2
    assert "accuracy" in result.stdout
    assert result.stderr == ("error: run/report.html cannot be written: No space left on device.\n")
    if form:
        assert json.loads(result.stdout)["report"] is None


def test_json_is_all_there_is_on_stdout(fedmtl):
    result = fedmtl("simulate", *SHORT, "--out", "run", "--json")
    content = json.loads(result.stdout)
    assert content["run"] == "run"
    assert set(content["final"]["test"]["tasks"]) == {"digit", "parity", "ink"}


def test_a_run_without_out_is_named_after_experiment_and_time(fedmtl, tmp_path):
    assert fedmtl("simulate", *SHORT, "--quiet").exit_code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-20")


def test_a_run_folder_that_is_not_empty_is_refused(fedmtl, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    (line,) = errors_of(fedmtl("simulate", *SHORT, "--out", "run"))
    assert "run folder run exists" in line


def test_a_resumed_run_can_be_given_more_rounds(fedmtl):
    fedmtl("simulate", *SHORT, "--out", "run")
    more = ["--set", "federation.rounds=3", "--json"]
    result = fedmtl("simulate", "--resume", "run", *more)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rounds"] == 3


def test_a_resumed_run_cannot_be_given_fewer_rounds_than_it_has_done(fedmtl, tmp_path):
    fedmtl("simulate", *SHORT, "--out", "run")
    before = (tmp_path / "run" / "experiment.toml").read_bytes()
    fewer = ["--set", "federation.rounds=1"]
    (line,) = errors_of(fedmtl("simulate", "--resume", "run", *fewer))
    assert "federation.rounds must be at least 2" in line
    assert (tmp_path / "run" / "experiment.toml").read_bytes() == before


@pytest.mark.parametrize(
    "extra", [["school"], ["--seed", 3], ["--out", "other"], ["--engine", "flower"]]
)
def test_a_resumed_run_keeps_its_own_experiment(fedmtl, tmp_path, extra):
    (line,) = errors_of(fedmtl("simulate", *extra, "--resume", "run"))
    assert line.startswith("error: --resume goes on with the run's own experiment")


def test_a_resumed_run_refuses_overrides_that_change_its_results(fedmtl):
    (line,) = errors_of(fedmtl("simulate", "--resume", "run", "--set", "training.lr=1"))
    assert line.startswith("error: With --resume, --set may change only federation.rounds,")


def test_resuming_a_folder_that_is_no_run_is_refused(fedmtl, tmp_path):
    (line,) = errors_of(fedmtl("simulate", "--resume", tmp_path))
    assert line.endswith("is no run folder: it has no experiment.toml.")


def test_resuming_a_run_of_an_unknown_engine_is_refused(fedmtl, tmp_path):
    fedmtl("simulate", *SHORT, "--out", "run")
    (tmp_path / "run" / "environment.json").write_text('{"engine": "warp"}')
    (line,) = errors_of(fedmtl("simulate", "--resume", "run"))
    assert line.startswith("error: --engine must be one of ")
    assert line.endswith("got 'warp'.")


def test_an_interrupted_run_says_how_to_go_on(fedmtl, interrupted):
    result = fedmtl("simulate", "--out", "my run")
    assert result.exit_code == 130
    assert "Go on with: fedmtl simulate --resume 'my run'" in result.stderr
    assert "Traceback" not in result.output


def test_an_interrupted_comparison_is_one_line_that_names_what_is_done(
    fedmtl, tmp_path, monkeypatch
):
    def compare(experiment, seeds, out, jobs, holdout, track):
        (out / "seed-0").mkdir(parents=True)
        (out / "seed-0" / "comparison.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("simulations.compare_command.compare", compare)
    result = fedmtl("compare", "--out", "out")
    assert result.exit_code == 130
    assert result.stderr.strip() == (
        "Interrupted: 1 of 3 seeds are done, each in out/seed-N/comparison.json."
    )


def test_a_comparison_of_variants_ends_with_its_table_figures_and_page(fedmtl, tmp_path):
    varied = ["--vary", "training.lr=0.005,0.02", "--no-yardstick", "--seeds", 1]
    few = ["--set", "partition.clients=2", *SHORT]
    result = fedmtl("compare", *varied, *few, "--out", "out")
    assert result.exit_code == 0, result.output
    assert "0.005" in result.stdout
    assert "Delta-m" not in result.stdout
    assert result.stdout.splitlines()[-2:] == [
        "figures: out/comparison.json",
        "report: out/comparison.html",
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "seed-0").iterdir()) == [
        "comparison.json",
        "training.lr=0.005",
        "training.lr=0.02",
    ]


def test_the_json_of_a_comparison_is_all_there_is_on_stdout(fedmtl, tmp_path):
    varied = ["--vary", "training.lr=0.005", "--no-yardstick", "--seeds", 1]
    few = ["--set", "partition.clients=2", *SHORT]
    result = fedmtl("compare", *varied, *few, "--out", "out", "--json")
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert json.loads(result.stdout) == written


def test_problems_of_variants_are_lines_and_nothing_is_written(fedmtl, tmp_path):
    lines = errors_of(fedmtl("compare", "--vary", "training.lr=-1,0.1,a", "--out", "out"))
    assert [line.split(": ")[1] for line in lines] == ["training.lr=-1", "training.lr=a"]
    assert list(tmp_path.iterdir()) == []


def test_leaving_out_the_yardstick_needs_variants(fedmtl):
    (line,) = errors_of(fedmtl("compare", "--no-yardstick"))
    assert line == "error: --no-yardstick is for --vary; remove it, or vary a setting."


def test_check_counts_rows_and_labels_of_every_client(fedmtl):
    result = fedmtl("check")
    assert result.exit_code == 0, result.output
    assert "client-009" in result.stdout
    assert "input pixels: 1 x 8 x 8" in result.stdout or "input pixels: 64" in result.stdout


def test_check_lists_the_problems_of_every_client(fedmtl, tmp_path):
    (tmp_path / "rows").mkdir()
    for client in ("a", "b"):
        (tmp_path / "rows" / f"{client}.csv").write_text("x,t\n1,2\nword,3\n4,5\n")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[data]\nsource = "folder"\npath = "rows"\n'
        '[inputs.x]\ncolumns = ["x"]\n[tasks.t]\nkind = "regression"\n'
    )
    lines = errors_of(fedmtl("check", "mine.toml"))
    assert len(lines) == 2
    assert "a" in lines[0]
    assert "b" in lines[1]


def test_the_schema_is_json(fedmtl):
    assert json.loads(fedmtl("check", "--schema").stdout)["title"] == "Experiment"


def test_a_report_can_be_written_again(fedmtl, tmp_path):
    fedmtl("simulate", *SHORT, "--out", "run")
    (tmp_path / "run" / "report.html").unlink()
    assert fedmtl("report", "run").stdout == "run/report.html\n"
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_report_of_no_run_is_refused(fedmtl, tmp_path):
    assert len(errors_of(fedmtl("report", tmp_path))) == 1


def test_list_names_everything_there_is(fedmtl):
    listed = json.loads(fedmtl("list", "--json").stdout)
    assert "digits" in listed["experiments"]["choices"]
    assert listed["engines"]["choices"]["loopback"]["line"]
    assert "loopback" in fedmtl("list").stdout


def test_list_can_be_one_heading(fedmtl):
    assert list(json.loads(fedmtl("list", "metrics", "--json").stdout)) == ["metrics"]


def test_the_chosen_engine_is_named_with_its_reason(fedmtl, tmp_path):
    quick = ["--set", "federation.rounds=1", "--out", str(tmp_path / "run")]
    result = fedmtl("simulate", "--engine", "auto", *quick)
    assert result.exit_code == 0
    assert "engine batched: 10 clients a round" in result.stderr


def test_workers_are_for_the_loopback_engine(fedmtl, tmp_path):
    out = ["--out", str(tmp_path / "run")]
    (line,) = errors_of(fedmtl("simulate", "--engine", "batched", "--workers", "2", *out))
    assert "--workers is for --engine loopback" in line
    assert not (tmp_path / "run").exists()
