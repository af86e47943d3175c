"""The page of several runs, on run folders that are made up."""

import json
import re

import pytest

from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from simulations.run_record import read_run
from simulations.runs_page import differing_settings, notes_of, write_runs_page
from simulations.simulate import simulate
from tests.test_simulations_report import (
    EVIL,
    TASKS,
    change_results,
    charts_of,
    evaluation,
    fabricate_run,
    text_of,
    texts,
)


@pytest.fixture
def two(tmp_path):
    """Two runs: the second has another rate and seed, ten rounds, and no task "stroke"."""
    fabricate_run(tmp_path / "one")
    some = {name: task for name, task in TASKS.items() if name != "stroke"}
    fabricate_run(tmp_path / "two", rounds=10, tasks=some)
    path = tmp_path / "two" / "experiment.toml"
    text = path.read_text().replace("lr = 0.05", "lr = 0.2").replace("seed = 0", "seed = 7")
    path.write_text(text)
    return [tmp_path / "one", tmp_path / "two"]


@pytest.fixture
def page(two, tmp_path):
    return write_runs_page(two, tmp_path / "runs.html")


def titled(page, title):
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text())
    return [c for c, own in zip(charts_of(page), captions, strict=True) if own == title]


def test_the_page_is_where_it_was_asked_for_and_fetches_nothing(page, tmp_path):
    assert page == tmp_path / "runs.html"
    plain = re.sub(r"<script[^>]*>.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", plain)


def test_the_table_gives_every_runs_figures_and_marks_the_best(two, tmp_path):
    experiment = read_run(two[0]).experiment
    for folder, figure in zip(two, (0.25, 0.75), strict=True):
        final = evaluation(experiment, 20, 10)
        final["test"]["tasks"]["digit"]["accuracy"] = figure
        change_results(folder, final=final)
    page = write_runs_page(two, tmp_path / "runs.html")
    assert "one done 20 0.2500" in text_of(page)
    assert "<strong>0.7500</strong>" in page.read_text()
    assert "<strong>0.2500</strong>" not in page.read_text()


def test_a_task_that_a_run_lacks_is_a_dash_and_no_curve(page):
    assert re.search(r"two done 10 0\.\d+ 0\.\d+ - ", text_of(page))
    assert [t["name"] for t in titled(page, "Validation rmse ↓")[0]["traces"]] == ["one"]


def test_only_settings_that_differ_are_listed(two):
    runs = {folder.name: read_run(folder) for folder in two}
    differ = differing_settings(runs)
    assert differ["training.lr"] == ["0.05", "0.2"]
    assert differ["seed"] == ["0", "7"]
    assert differ["tasks.stroke.kind"] == ["regression", "-"]
    others = {key for key in differ if not key.startswith("tasks.stroke.")}
    assert others == {"training.lr", "seed", "federation.rounds"}


def test_a_table_that_one_run_lacks_is_shown_by_its_keys(two):
    path = two[1] / "experiment.toml"
    private = "\n[privacy.client-level]\nnoise-multiplier = 1.5\n"
    path.write_text(path.read_text().replace("weight-by = \"examples\"", "weight-by = \"uniform\"")
                    + private)  # fmt: skip
    differ = differing_settings({folder.name: read_run(folder) for folder in two})
    assert differ["privacy.client-level.noise-multiplier"] == ["-", "1.5"]
    assert "privacy.client-level" not in differ


def test_a_run_has_one_curve_and_one_colour_in_all_charts(page):
    drawn = [titled(page, title)[0] for title in ("Validation accuracy ↑", "Time so far")]
    for chart in drawn:
        assert [trace["name"] for trace in chart["traces"]] == ["one", "two"]
        assert [trace["line"]["color"] for trace in chart["traces"]] == ["$c0", "$c1"]
    assert drawn[0]["traces"][1]["x"] == list(range(11))


def test_runs_on_other_rows_are_told_to_be_so(two, page, tmp_path):
    assert "differ in seed." in text_of(page)
    alike = write_runs_page([two[0], copied(two[0], tmp_path / "three")], tmp_path / "alike.html")
    assert "may not be the same" not in text_of(alike)
    assert "The experiments are the same, setting by setting." in text_of(alike)


def test_of_many_settings_about_rows_five_are_named_and_the_rest_counted(two):
    runs = {folder.name: read_run(folder) for folder in two}
    differ = {f"data.setting-{number}": ["0", "1"] for number in range(7)}
    (told,) = [note for note in notes_of(runs, differ) if "may not be the same" in note]
    assert told.endswith("data.setting-3, data.setting-4 and 2 more.")


def copied(folder, to):
    fabricate_run(to)
    (to / "experiment.toml").write_text((folder / "experiment.toml").read_text())
    return to


def test_epsilon_is_there_for_private_runs_only(two, page, tmp_path):
    assert "Privacy" not in text_of(page)
    told = {"epsilon": 7.5, "delta": 1e-5, "budget": 8.0, "noise-multiplier": 1.5}
    change_results(two[1], privacy={"client": told, "accountant": "rdp"})
    lines = [json.loads(text) for text in (two[1] / "metrics.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["privacy"] = {"client": {**told, "epsilon": 0.75 * (number + 1)}}
    (two[1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_runs_page(two, tmp_path / "runs.html")
    assert "two client level 7.500 1e-05 8 1.500" in text_of(page)
    assert "Without an epsilon: one." in text_of(page)
    (chart,) = titled(page, "Epsilon so far, client level ↓")
    assert chart["traces"][0]["y"][:2] == [0.75, 1.5]
    assert chart["traces"][0]["line"]["color"] == "$c1"


def test_cost_has_time_and_traffic_of_each(page):
    assert "one loopback 20 2.0 s 100 ms 7.20 MB 34.50 kB" in text_of(page)


def test_unfinished_runs_and_runs_without_a_round_have_a_page(two, tmp_path):
    for file in ("results.json", "metrics.jsonl"):
        (two[1] / file).unlink()
    (two[0] / "results.json").unlink()
    text = text_of(write_runs_page(two, tmp_path / "runs.html"))
    assert "0 of 2 done" in text
    assert "one unfinished 19" in text
    assert "two unfinished - - -" in text


def test_runs_of_one_name_are_told_apart_by_their_folders(two, tmp_path):
    other = tmp_path / "other" / "one"
    fabricate_run(other)
    text = text_of(write_runs_page([two[0], other], tmp_path / "runs.html"))
    assert "other/ one done" in text  # with a place to break between them


def test_whatever_users_name_is_escaped(two, tmp_path):
    evil = tmp_path / EVIL.replace("/", "-")
    fabricate_run(evil)
    (evil / "environment.json").write_text(json.dumps({"engine": EVIL, "command": EVIL}))
    change_results(evil, stopped=EVIL)
    page = write_runs_page([two[0], evil], tmp_path / "runs.html")
    assert "<script>alert" not in page.read_text()
    assert all("<script" not in text for chart in charts_of(page) for text in texts(chart))


def test_a_run_given_twice_or_too_many_or_no_run_is_refused(two, tmp_path):
    with pytest.raises(ConfigError, match="RUN must be another folder each time, got 2 names of 1"):
        write_runs_page([two[0], two[0] / "." / ".." / "one"], tmp_path / "runs.html")
    with pytest.raises(ConfigError, match="RUN must be given at most 24 times, got 25"):
        write_runs_page([tmp_path / str(n) for n in range(25)], tmp_path / "runs.html")
    with pytest.raises(CheckpointError, match="no run folder"):
        write_runs_page([two[0], tmp_path], tmp_path / "runs.html")
    assert not (tmp_path / "runs.html").exists()


def test_runs_of_one_split_are_not_said_to_have_other_test_rows(tmp_path):
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / str(seed))
        settings = ["federation.rounds=1", "trunk.widths=[4]", "data.seed=3"]
        experiment = load_experiment("digits", settings, seed=seed)
        simulate(experiment, engine="batched", out=folders[-1])
    runs = {folder.name: read_run(folder) for folder in folders}
    differ = differing_settings(runs)
    assert "seed" in differ
    assert not any("Test rows may not be the same" in note for note in notes_of(runs, differ))
