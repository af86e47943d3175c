"""What `fedmtl runs` lists, on run folders that are made up."""

import json
import os
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from common.errors import CheckpointError, ConfigError
from common.locking import take
from simulations.cli import app
from simulations.run_filter import parse_condition, select_runs, sort_runs
from simulations.run_list import HEADINGS, list_runs
from simulations.run_lock import at_work
from simulations.run_record import read_run
from tests.test_simulations_report import change_results, evaluation, fabricate_run


def change_experiment(folder, old, new):
    path = folder / "experiment.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def folder(tmp_path):
    """Three runs: a is done, b stopped early with another seed and rate, c never ended."""
    for name, rounds in (("a", 20), ("b", 10), ("deep/c", 4)):
        fabricate_run(tmp_path / name, rounds=rounds)
    change_results(tmp_path / "b", stopped="budget: epsilon 8 is spent", seconds=75.0)
    change_experiment(tmp_path / "b", "seed = 0", "seed = 7")
    change_experiment(tmp_path / "b", "lr = 0.05", "lr = 0.2")
    (tmp_path / "deep" / "c" / "results.json").unlink()
    return tmp_path


def rows_of(folder):
    rows, left_out = list_runs([folder])
    assert left_out == []
    return {row.name: row for row in rows}


def kept(folder, *conditions):
    rows = list(rows_of(folder).values())
    return [row.name for row in select_runs(rows, [parse_condition(c) for c in conditions])]


def order(folder, key, **options):
    return [row.name for row in sort_runs(list(rows_of(folder).values()), key, **options)]


def test_every_run_below_the_folder_is_a_row(folder):
    rows = rows_of(folder)
    assert {name: row.state for name, row in rows.items()} == {
        "a": "done",
        "b": "stopped: budget: epsilon 8 is spent",
        "deep/c": "unfinished",
    }
    assert [(row.round, row.rounds) for row in rows.values()] == [(20, 20), (10, 10), (4, 4)]
    assert [row.seed for row in rows.values()] == [0, 7, 0]
    assert rows["b"].seconds == 75.0
    assert rows["deep/c"].seconds == pytest.approx(0.4)  # of its last round


def test_figures_are_those_of_the_last_trunk_on_test_rows(folder):
    experiment = fabricate_run(folder / "a")
    final = evaluation(experiment, 20, 10)
    final["test"]["tasks"]["digit"]["accuracy"] = 0.25
    final["test"]["tasks"].pop("stroke")
    change_results(folder / "a", final=final)
    row = rows_of(folder)["a"]
    assert row.figures["digit"] == 0.25
    assert row.figures["stroke"] == final["validation"]["tasks"]["stroke"]["rmse"]
    assert "digit accuracy 0.2500" in row.cells()[HEADINGS.index("figures")]


def test_epsilon_is_told_of_a_private_run_only(folder):
    assert rows_of(folder)["a"].epsilon == {}
    told = {"epsilon": 7.5, "delta": 1e-5, "budget": 8.0}
    change_results(folder / "a", privacy={"client": told, "accountant": "rdp"})
    row = rows_of(folder)["a"]
    assert row.epsilon == {"client": 7.5}
    assert row.cells()[HEADINGS.index("epsilon")] == "client 7.500"


def test_a_run_is_dated_by_its_newest_figures(folder):
    for file in (folder / "a").iterdir():
        os.utime(file, (0, 0))
    os.utime(folder / "a" / "metrics.jsonl", (86400, 86400))
    assert rows_of(folder)["a"].when == datetime(1970, 1, 2, tzinfo=UTC)


def test_a_run_is_running_while_its_lock_is_held(folder):
    handle = take(folder / "a" / "lock")
    assert rows_of(folder)["a"].state == "running"
    os.close(handle)
    assert rows_of(folder)["a"].state == "done"


def test_a_run_at_work_keeps_a_second_one_out(tmp_path):
    with (
        at_work(tmp_path),
        pytest.raises(CheckpointError, match="is in use: another process trains it"),
        at_work(tmp_path),
    ):
        pass
    with at_work(tmp_path):  # let go of, after an error too
        pass


def test_a_deployed_run_is_running_or_failed_as_its_status_says(folder):
    status = {"what": "server", "state": "waiting", "updated": 4e9, "max_age_s": 60.0}
    (folder / "deep" / "c" / "status.json").write_text(json.dumps(status))
    assert rows_of(folder)["deep/c"].state == "running"
    (folder / "deep" / "c" / "status.json").write_text(json.dumps({**status, "state": "failed"}))
    assert rows_of(folder)["deep/c"].state == "failed"
    (folder / "deep" / "c" / "status.json").write_text(json.dumps({**status, "updated": 1.0}))
    assert rows_of(folder)["deep/c"].state == "unfinished"


def test_what_is_broken_or_foreign_is_named_and_the_rest_is_listed(folder):
    (folder / "foreign" / "x").mkdir(parents=True)
    (folder / "torn").mkdir()
    (folder / "torn" / "experiment.toml").write_text("nonsense = [")
    (folder / "a" / "results.json").write_text("{}")
    fabricate_run(folder / "odd")
    (folder / "odd" / "environment.json").write_bytes(b"\xff")
    (folder / "odd2").mkdir()
    fabricate_run(folder / "odd2" / "run")
    results = json.loads((folder / "odd2" / "run" / "results.json").read_text())
    (folder / "odd2" / "run" / "results.json").write_text(json.dumps({**results, "final": {}}))
    rows, left_out = list_runs([folder])
    assert [row.name for row in rows] == ["b", "deep/c"]
    reasons = {each.folder: each.reason for each in left_out}
    assert list(reasons) == [str(folder / n) for n in ("a", "foreign", "odd", "odd2/run", "torn")]
    assert "results.json cannot be read" in reasons[str(folder / "a")]
    assert reasons[str(folder / "foreign")].startswith("no run folder")
    assert all("\n" not in reason for reason in reasons.values())


def test_a_search_is_no_run_and_its_runs_are_below_it(tmp_path):
    search = tmp_path / "tune"
    for name, rounds in (("0000", 5), ("0001", 2), ("own-settings", 5)):
        fabricate_run(search / "trials" / name / "seed-0", rounds=rounds)
    for name in ("results.json", "checkpoint"):
        (search / "trials" / "0001" / "seed-0" / name).unlink(missing_ok=True)
    (search / "experiment.toml").write_text("a search's own settings")
    (search / "settings.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"a search of fedmtl tune: its page is tune\.html"):
        read_run(search)
    for top, before in ((tmp_path, "tune/"), (search, "")):
        rows, left_out = list_runs([top])
        assert not left_out
        assert {row.name: row.state for row in rows} == {
            f"{before}trials/0000/seed-0": "done",
            f"{before}trials/0001/seed-0": "stopped: by its search",
            f"{before}trials/own-settings/seed-0": "done",
        }


def test_links_are_not_followed(folder):
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    assert list(rows_of(folder)) == ["a", "b", "deep/c"]


def test_a_run_folder_itself_can_be_named_and_is_listed_once(folder):
    rows, _ = list_runs([folder / "a"])
    assert [row.name for row in rows] == ["a"]
    rows, _ = list_runs([folder, folder / "a", folder])
    assert [row.path for row in rows] == [str(folder / n) for n in ("a", "b", "deep/c")]


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="FOLDER must be a folder with runs in it"):
        list_runs([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        ("training.lr=0.2", ["b"]),
        ("training.lr = 2e-1", ["b"]),
        ("training.lr<0.2", ["a", "deep/c"]),
        ("training.lr<=0.2", ["a", "b", "deep/c"]),
        ("federation.rounds>4", ["a", "b"]),
        ("federation.rounds>=20", ["a"]),
        ("seed!=0", ["b"]),
        ("seed=false", []),  # which is not 0
        ("loss.weighting=equal", ["a", "b", "deep/c"]),
        ("data.source='digits'", ["a", "b", "deep/c"]),
        ("tasks.digit.classes=10", ["a", "b", "deep/c"]),
    ],
)
def test_runs_are_filtered_by_a_setting(folder, condition, names):
    assert kept(folder, condition) == names


def test_all_conditions_must_hold(folder):
    assert kept(folder, "seed=0", "federation.rounds<10") == ["deep/c"]


def test_a_run_without_the_setting_does_not_fit(folder):
    change_experiment(folder / "a", "[tasks.digit]", "[tasks.number]")
    assert kept(folder, "tasks.number.classes!=3") == ["a"]


@pytest.mark.parametrize("text", ["training.lr", "=3", "training.lr=", "training.lr~3", ""])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="--where must be KEY=VALUE"):
        parse_condition(text)


def test_only_numbers_are_ordered():
    with pytest.raises(ConfigError, match=r"--where loss.weighting< must be followed by a number"):
        parse_condition("loss.weighting<equal")


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("trainin.lr=3", "Did you mean 'training.lr'"),
        ("training=3", "got the table 'training'; name a setting in it, such as training."),
    ],
)
def test_a_setting_that_no_run_has_is_refused(folder, condition, told):
    with pytest.raises(ConfigError, match=told):
        kept(folder, condition)


def test_runs_are_sorted_by_columns_tasks_and_settings(folder):
    assert order(folder, "rounds") == ["deep/c", "b", "a"]
    assert order(folder, "training.lr") == ["a", "deep/c", "b"]
    assert order(folder, "training.lr", reverse=True)[0] == "b"
    for number, name in enumerate(("a", "b", "deep/c")):
        for file in (folder / name).iterdir():
            os.utime(file, (number, number))
    assert order(folder, "when") == ["deep/c", "b", "a"]


@pytest.mark.parametrize(("task", "metric"), [("digit", "accuracy"), ("stroke", "rmse")])
def test_a_task_sorts_the_best_first_and_those_without_it_last(folder, task, metric):
    experiment = fabricate_run(folder / "a")
    for name, figure in (("a", 0.3), ("b", 0.6)):
        final = evaluation(experiment, 20, 10)
        final["test"]["tasks"][task][metric] = figure
        change_results(folder / name, final=final)
    (folder / "deep" / "c" / "metrics.jsonl").unlink()
    best_first = ["b", "a"] if metric == "accuracy" else ["a", "b"]
    assert order(folder, task) == [*best_first, "deep/c"]
    assert order(folder, task, reverse=True) == [*best_first[::-1], "deep/c"]


def test_sorting_by_what_no_run_has_is_refused(folder):
    with pytest.raises(ConfigError, match=r"--sort must be one of .* got 'seconsd'.*'seconds'"):
        order(folder, "seconsd")


def test_a_row_has_a_cell_for_every_heading_and_is_json(folder):
    row = rows_of(folder)["b"]
    assert len(row.cells()) == len(HEADINGS)
    content = json.loads(json.dumps(row.to_json()))
    assert content["seed"] == 7
    assert "settings" not in content


def test_runs_and_their_page_come_from_the_command_line(tmp_path, monkeypatch):
    def fedmtl(*arguments):
        return CliRunner().invoke(app, arguments)

    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        fabricate_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "foreign").mkdir()
    listed = fedmtl("runs", "--sort", "name")
    assert listed.stdout.index("│ a ") < listed.stdout.index("│ b ")
    assert listed.stdout.endswith("2 runs\n")
    assert listed.stderr.startswith("left out: runs/foreign: no run folder")
    content = json.loads(fedmtl("runs", "--json", "--where", "seed=0", "--sort", "name").stdout)
    assert [run["name"] for run in content["runs"]] == ["a", "b"]
    assert content["left-out"][0]["folder"] == "runs/foreign"
    assert fedmtl("runs", "--where", "seed>0").stdout == "0 of 2 runs\n"
    assert fedmtl("report", "runs/a", "runs/b").stdout == "runs.html\n"
    assert fedmtl("report", "runs/a", "--out", "page.html").stdout == "page.html\n"
    assert (tmp_path / "runs.html").is_file()
    assert (tmp_path / "page.html").is_file()
    assert fedmtl("runs", "nowhere").exit_code == 2
