import json
import math
import re
from pathlib import Path

import pytest

from common.errors import CheckpointError
from common.experiment import Experiment
from common.experiment_file import dump_experiment
from simulations.report import write_report
from simulations.run_record import read_run

EVIL = "<script>alert('x')</script>"
TASKS = {
    "digit": {"kind": "multiclass", "classes": 10},
    "parity": {"kind": "binary", "metric": "auroc"},
    "stroke": {"kind": "regression"},
}


def figures(experiment, progress, clients):
    """Plausible figures of one split after a share `progress` of the run."""
    tasks = {}
    for number, (name, task) in enumerate(experiment.tasks.items()):
        good = task.metric_name in ("accuracy", "auroc")
        value = 0.3 + 0.65 * progress - 0.05 * number if good else 9.0 - 6.5 * progress
        band = (value - 0.1, value - 0.06, value + 0.01, value + 0.05, value + 0.07)
        spread = dict(zip(("min", "p10", "median", "p90", "max"), band, strict=True))
        tasks[name] = {
            "loss": 2.3 * math.exp(-2.5 * progress) + 0.1,
            task.metric_name: value,
            "examples": 30 * clients,
            "spread": {**spread, "clients": clients},
        }
    return {"loss": sum(f["loss"] for f in tasks.values()), "tasks": tasks}


def evaluation(experiment, trunk_round, clients):
    progress = 1 - math.exp(-6 * trunk_round / experiment.federation.rounds)
    splits = {s: figures(experiment, progress, clients) for s in ("validation", "test")}
    return {"trunk-round": trunk_round, "clients": clients, **splits}


def round_line(experiment, number, clients, left_out=None, weights=None):
    left_out = left_out or {}
    train = figures(experiment, (number - 1) / experiment.federation.rounds, clients)
    return {
        "round": number,
        "time_s": 0.1 + 0.02 * math.sin(number),
        "elapsed_s": 0.1 * number,
        "clients": {
            "asked": clients,
            "answered": clients - len(left_out),
            "left-out": left_out,
        },
        "traffic": {"sent-bytes": 36_000 * clients, "received-bytes": 34_500 * clients},
        "weights": weights or dict.fromkeys(experiment.tasks, 1.0),
        "train": train,
        "evaluation": evaluation(experiment, number - 1, clients),
    }


def client_results(experiment, number):
    tasks = {}
    for name, task in experiment.tasks.items():
        value = 0.9 + 0.08 * math.sin(37 * number)
        split = {"loss": 0.2, task.metric_name: value, "examples": 30}
        tasks[name] = {"validation": split, "test": split}
    return {"examples": {"train": 100, "validation": 20, "test": 30}, "tasks": tasks}


def fabricate_run(folder, *, clients=10, rounds=20, tasks=TASKS, names="client-{:03}", **lines):
    """Write a run folder that no training stands behind; returns its experiment."""
    experiment = Experiment.model_validate(
        {
            "name": "made-up",
            "description": "Three unlike tasks on the embedded digits, ten clients.",
            "data": {"source": "digits"},
            "inputs": {"pixels": {"columns": ["pixel-*"]}},
            "tasks": tasks,
            "federation": {"rounds": rounds},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(dump_experiment(experiment))
    environment = {"engine": "loopback", "versions": {"torch": "2.9"}, "machine": {"cores": 2}}
    (folder / "environment.json").write_text(json.dumps(environment))
    made = [round_line(experiment, n, clients, **lines) for n in range(1, rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    final = evaluation(experiment, rounds, clients)
    results = {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "seed": 0,
        "rounds": rounds,
        "stopped": "all rounds done",
        "seconds": 0.1 * rounds,
        "final": final,
        "best": final,
        "clients": {names.format(n): client_results(experiment, n) for n in range(clients)},
        "traffic": {"sent-bytes": 36_000 * clients * rounds, "received-bytes": 34_500},
        "warnings": [],
    }
    (folder / "results.json").write_text(json.dumps(results))
    return experiment


def change_results(folder, **changes):
    path = folder / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def text_of(page: Path):
    """The page's own words: without scripts and styles, tags removed."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def charts_of(page: Path):
    found = re.search(r'id="charts">(.*?)</script>', page.read_text(), re.DOTALL)
    return list(json.loads(found[1]).values())


@pytest.fixture
def run(tmp_path):
    fabricate_run(tmp_path)
    return tmp_path


def test_the_page_lies_in_the_run_folder(run):
    assert write_report(run) == run / "report.html"


def test_a_page_that_cannot_be_written_leaves_the_one_before(run, monkeypatch):
    before = write_report(run).read_text()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(CheckpointError, match=r"report\.html cannot be written: No space left"):
        write_report(run)
    assert (run / "report.html").read_text() == before


def test_the_page_fetches_nothing(run):
    page = re.sub(r"<script\b.*?</script>", "", write_report(run).read_text(), flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", page)


def test_the_headline_table_gives_final_and_best_figures(run):
    experiment = read_run(run).experiment
    digit = evaluation(experiment, 20, 10)["test"]["tasks"]["digit"]["accuracy"]
    assert f"digit multiclass accuracy ↑ {digit:.4f} {digit:.4f}" in text_of(write_report(run))


def test_lower_is_better_for_errors(run):
    first = evaluation(read_run(run).experiment, 0, 10)
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    lines[7]["evaluation"] = {**first, "trunk-round": 7}
    lines[7]["evaluation"]["validation"]["tasks"]["stroke"]["rmse"] = 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "0.5000 round 7" in text_of(write_report(run))


def test_curves_are_drawn_against_the_round_of_the_trunk(run):
    metric = next(c for c in charts_of(write_report(run)) if "Validation" in c["title"])
    assert metric["traces"][-1]["name"] == "all rows"
    assert metric["traces"][-1]["x"] == list(range(21))  # rounds 1-20 evaluate 0-19; then the last


@pytest.mark.parametrize("clients", [1, 2, 25, 1000])
def test_every_client_is_a_dot(tmp_path, clients):
    fabricate_run(tmp_path, clients=clients)
    dots = [
        chart["traces"][0]
        for chart in charts_of(write_report(tmp_path))
        if chart["traces"][0].get("mode") == "markers" and "text" in chart["traces"][0]
    ]
    assert [len(trace["x"]) for trace in dots] == [clients] * 3


def test_long_runs_are_thinned(tmp_path):
    fabricate_run(tmp_path, rounds=3000, clients=2)
    page = write_report(tmp_path)
    assert max(len(t["x"]) for chart in charts_of(page) for t in chart["traces"]) == 1000


def test_an_interrupted_run_has_a_report(run):
    (run / "results.json").unlink()
    text = text_of(write_report(run))
    assert "unfinished" in text
    assert "trunk after round 19" in text


def test_a_torn_last_line_is_passed_over(run):
    (run / "results.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 21, "time_s": 0.1, "eval')
    assert "20 of 20" in text_of(write_report(run))


def test_a_torn_line_in_the_middle_is_told(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 21\n{"round": 22}\n')
    with pytest.raises(CheckpointError, match=r"line 21 is no round"):
        write_report(run)


@pytest.mark.parametrize("file", ["metrics.jsonl", "results.json", "environment.json"])
def test_a_file_with_other_content_is_told(run, file):
    lines = "[]\n[]\n" if file == "metrics.jsonl" else "[]"
    (run / file).write_text(lines)
    with pytest.raises(CheckpointError, match=re.escape(file)):
        write_report(run)


def test_results_without_their_keys_are_told(run):
    (run / "results.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"results\.json .*clients, final, stopped, traffic"):
        write_report(run)


def test_a_run_before_its_first_round_has_a_report(run):
    (run / "results.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert "No trunk was evaluated yet." in text_of(write_report(run))


def test_figures_that_do_not_exist_are_dashes(run):
    nothing = {"trunk-round": 20, "clients": 10, "validation": {}, "test": {}}
    change_results(run, final=nothing, best=None, clients={})
    assert "digit multiclass accuracy ↑ - -" in text_of(write_report(run))


def test_nan_does_not_reach_the_script(run):
    lines = (run / "metrics.jsonl").read_text().replace('"loss": 2.4', '"loss": NaN')
    (run / "metrics.jsonl").write_text(lines)
    assert "NaN" not in json.dumps(charts_of(write_report(run)))


def test_whatever_users_name_is_escaped(tmp_path):
    names = EVIL + "{:03}"
    fabricate_run(tmp_path, names=names, left_out={EVIL: f"because {EVIL}"})
    experiment = (tmp_path / "experiment.toml").read_text()
    experiment = experiment.replace("Three unlike", f"{EVIL} unlike")
    (tmp_path / "experiment.toml").write_text(experiment)
    (tmp_path / "environment.json").write_text(json.dumps({"engine": EVIL, "versions": {EVIL: 1}}))
    change_results(tmp_path, warnings=[EVIL], stopped=EVIL)
    page = write_report(tmp_path)
    assert "<script>alert" not in page.read_text()
    assert all("<script" not in text for chart in charts_of(page) for text in texts(chart))


def texts(content):
    """All strings in a figure."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [text for part in content for text in texts(part)]
    return [content] if isinstance(content, str) else []


def test_clients_that_were_left_out_are_named_with_the_reason(tmp_path):
    fabricate_run(tmp_path, left_out={"client-003": "trunk has NaN"})
    assert "client-003 trunk has NaN 20" in text_of(write_report(tmp_path))


def test_weights_that_never_change_need_no_chart(run):
    assert "The same in every round: digit 1.000" in text_of(write_report(run))


def test_weights_that_change_are_drawn(run):
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    lines[3]["weights"]["digit"] = 2.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = [c for c in charts_of(write_report(run)) if c["traces"][0].get("name") == "digit"]
    assert drawn[0]["traces"][0]["y"][3] == 2.0


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        write_report(tmp_path)


def test_figures_of_single_clients_that_nobody_has_are_no_empty_table(run):
    change_results(run, clients={})
    told = text_of(write_report(run))
    assert "No figures of single clients left them." in told
    assert "Test figures of every client" not in told
