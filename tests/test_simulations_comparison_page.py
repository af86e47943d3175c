"""The page of a comparison: its table, charts and curves, on run folders that are made up."""

import json
import re

import pytest

from common.experiment import Experiment
from simulations.comparison_charts import label
from simulations.comparison_page import write_comparison_page
from simulations.comparison_table import notes_of
from simulations.gains import YARDSTICK, spread
from simulations.run_record import read_run
from tests.test_simulations_report import (
    EVIL,
    charts_of,
    evaluation,
    fabricate_run,
    text_of,
    texts,
)

ONE, TWO = "training.lr=0.1", "training.lr=0.2"


def contender(experiment, digit, **more):
    tasks = {task: spread([0.5, 0.5]) for task in experiment.tasks}
    return {"tasks": {**tasks, "digit": spread(digit)}, "delta-m": spread([1.0, 3.0]), **more}


def variant(experiment, digit, folder, **more):
    lr = folder.removeprefix("training.lr=")
    return contender(
        experiment,
        digit,
        settings={"training.lr": lr},
        folder=folder,
        engine="batched",
        fingerprint="0123456789abcdef",
        yardstick=YARDSTICK,
        **{"step-ms": spread([0.25, 0.75])},
        **more,
    )


@pytest.fixture
def made_up(tmp_path):
    """Two variants with two seeds each; returns experiment, comparison and folder."""
    for seed in range(2):
        for name, rounds in ((ONE, 20), (TWO, 20 - 5 * seed)):
            experiment = fabricate_run(tmp_path / f"seed-{seed}" / name, rounds=rounds)
    comparison = {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "command": "fedmtl compare made-up --vary training.lr=0.1,0.2",
        "seeds": [0, 1],
        "metrics": {name: task.metric_name for name, task in experiment.tasks.items()},
        "vary": {"training.lr": ["0.1", "0.2"]},
        "jobs": 1,
        "contenders": {
            YARDSTICK: contender(experiment, [0.5, 0.6], settings={}),
            ONE: variant(experiment, [0.6, 0.8], ONE),
            TWO: variant(experiment, [0.9, 0.9], TWO),
        },
    }
    return experiment, comparison, tmp_path


def titled(page, title):
    """The chart whose caption is this, by its place on the page."""
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.read_text())
    return charts_of(page)[captions.index(title)]


def test_the_page_lies_beside_the_figures_and_fetches_nothing(made_up):
    page = write_comparison_page(*made_up)
    assert page == made_up[2] / "comparison.html"
    plain = re.sub(r"<script[^>]*>.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", plain)


def test_the_table_has_all_figures_and_marks_the_best(made_up):
    page = write_comparison_page(*made_up)
    text = text_of(page)
    assert "0.1 0.7000 ± 0.14 0.5000 ± 0 0.5000 ± 0 +2.0 ± 1.4 0.5000 ± 0.35" in text
    assert "single-task local 0.5500 ± 0.071" in text
    assert "<strong>0.9000 ± 0</strong>" in page.read_text()
    assert "<strong>0.7000 ± 0.14</strong>" not in page.read_text()


def test_every_seed_is_a_dot_and_every_mean_has_its_deviation(made_up):
    chart = titled(write_comparison_page(*made_up), "digit: accuracy ↑")
    seeds, means = chart["traces"]
    assert seeds["x"] == [0.5, 0.6, 0.6, 0.8, 0.9, 0.9]
    assert seeds["y"] == [3, 3, 2, 2, 1, 1]
    assert means["x"] == pytest.approx([0.55, 0.7, 0.9])
    assert means["error_x"]["array"][1] == pytest.approx(0.2 / 2**0.5)
    assert chart["layout"]["yaxis"]["ticktext"] == [TWO, ONE, YARDSTICK]  # from the bottom up
    assert chart["layout"]["shapes"][0]["x0"] == pytest.approx(0.55)  # the yardstick


def test_a_variant_has_one_colour_in_all_charts(made_up):
    page = write_comparison_page(*made_up)
    _, means = titled(page, "digit: accuracy ↑")["traces"]
    lines = titled(page, "All tasks: validation loss, weighted ↓")["traces"]
    assert means["marker"]["color"] == ["$muted", *(line["line"]["color"] for line in lines)]


def test_curves_are_means_over_seeds_as_far_as_all_of_them_got(made_up):
    out = made_up[2]
    lines = titled(write_comparison_page(*made_up), "Validation accuracy ↑")["traces"]
    assert [line["name"] for line in lines] == [ONE, TWO]
    assert lines[0]["x"] == list(range(21))
    assert lines[1]["x"] == list(range(16))  # the second seed stopped early
    runs = [read_run(out / f"seed-{seed}" / TWO).experiment for seed in range(2)]
    by_hand = [evaluation(e, 10, 10)["validation"]["tasks"]["digit"]["accuracy"] for e in runs]
    assert lines[1]["y"][10] == pytest.approx(sum(by_hand) / 2)


def test_figures_that_do_not_exist_are_dashes_and_no_dots(made_up):
    experiment, comparison, out = made_up
    nothing = float("nan")
    comparison["contenders"][ONE] = variant(experiment, [0.6, nothing], ONE)
    (out / "seed-1" / ONE / "results.json").unlink()
    (out / "seed-1" / ONE / "metrics.jsonl").unlink()
    page = write_comparison_page(experiment, comparison, out)
    seeds, means = titled(page, "digit: accuracy ↑")["traces"]
    assert seeds["x"] == [0.5, 0.6, 0.6, 0.9, 0.9]
    assert means["x"] == pytest.approx([0.55, 0.9])
    assert titled(page, "Validation accuracy ↑")["traces"][0]["x"] == []
    assert "NaN" not in json.dumps(charts_of(page))
    assert "0.1 - 0.5000" in text_of(page)


def test_settings_and_command_repeat_the_comparison(made_up):
    text = text_of(write_comparison_page(*made_up))
    assert "fedmtl compare made-up --vary training.lr=0.1,0.2" in text
    assert "varied: training.lr 0.1, 0.2" in text
    assert f"{ONE} batched {ONE} 0123456789abcdef" in text
    assert "[training]" in text


def test_whatever_users_name_is_escaped(made_up):
    experiment, comparison, out = made_up
    content = experiment.model_dump(mode="json", by_alias=True, exclude_none=True)
    evil = Experiment.model_validate({**content, "description": EVIL})
    ugly = variant(experiment, [0.6, 0.8], ONE)
    ugly["settings"] = {"training.lr": EVIL}
    comparison["contenders"] = {YARDSTICK: comparison["contenders"][YARDSTICK], EVIL: ugly}
    comparison["vary"] = {"training.lr": [EVIL]}
    comparison["command"] = EVIL
    page = write_comparison_page(evil, comparison, out)
    assert "<script>alert" not in page.read_text()
    assert all("<script" not in text for chart in charts_of(page) for text in texts(chart))


def test_contenders_without_varied_settings_have_a_page_too(made_up):
    experiment, comparison, out = made_up
    for key in ("vary", "jobs"):
        del comparison[key]
    comparison["contenders"] = {
        YARDSTICK: contender(experiment, [0.5, 0.6]),
        "federated trunk, local heads": contender(experiment, [0.7, 0.8], folder=ONE),
    }
    page = write_comparison_page(experiment, comparison, out)
    assert "federated trunk, local heads 0.7500 ± 0.071" in text_of(page)
    assert "2 contenders" in text_of(page)
    lines = titled(page, "Validation accuracy ↑")["traces"]
    assert [line["name"] for line in lines] == ["federated trunk, local heads"]


def test_labels_are_narrow_enough_for_a_phone():
    long = label("federation.clients-per-round=100, loss.weighting=uncertainty")
    assert max(len(line) for line in long.split("<br>")) <= 22


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({}, False),
        ({"private": True}, True),
        ({"vary": ["privacy.example-level.epsilon"], "jobs": 1}, True),
        ({"vary": ["training.lr"], "jobs": 1}, False),
    ],
)
def test_a_comparison_says_whom_noise_is_not_asked_of(own, told):
    notes = notes_of({"seeds": [0], "contenders": {}, **own})
    assert any("without the noise of [privacy]" in note for note in notes) == told
