"""Utility against leakage: what must leak does, what must not does not, and it is told as it is."""

import json
from dataclasses import replace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from client.session import close_sessions
from common.errors import CheckpointError, ConfigError
from simulations.benchmarks import utility_leakage
from simulations.benchmarks.leakage_arms import ARMS, DATASETS, make_experiment
from simulations.benchmarks.leakage_page import strip_png, trade_chart
from simulations.benchmarks.leakage_tables import (
    cells_of,
    columns_of,
    notes_of,
    summarise,
    to_markdown,
)
from simulations.benchmarks.leakage_trial import Effort, Outcome, Trial, run_trial

ONE_ROW = (
    "partition.clients=599 data.test=0.6 data.clients=['client-000','client-001'] "
    "federation.rounds=2 trunk.widths=[16]"
)  # three rows each, of which one is trained on
FEW = "partition.clients=4 data.test=0.99 federation.rounds=2 trunk.widths=[16]"
MANY = "privacy.client-level.delta=0.001"  # must be below one over 599 clients
QUICK = Effort(iterations=20, victims=2, shadows=20)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """Attack clients of one row under an arm, each arm once."""
    folder, done = tmp_path_factory.mktemp("leakage"), {}

    def attack(arm):
        if arm not in done:
            more = f"{ONE_ROW} {MANY}" if arm == "trunk-client" else ONE_ROW
            trial = Trial("digits", "one-step", arm, 0, folder, QUICK, more=more)
            done[arm] = run_trial(trial)
        return done[arm]

    yield attack
    close_sessions()


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["whole-model", "trunk"])
def test_a_client_of_one_row_is_read_off_its_update_with_and_without_its_heads(attacked, arm):
    found = attacked(arm)
    assert found.figures["inversion/gain"] > 0.9999
    assert found.figures["inversion/recovered"] == 1
    true, guessed = found.pictures
    np.testing.assert_allclose(guessed, true, atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["trunk-row-eps-1", "trunk-client"])
def test_under_strong_noise_a_row_is_found_no_better_than_the_mean_row(attacked, arm):
    found = attacked(arm)
    assert found.figures["inversion/gain"] <= 0
    assert found.figures["inversion/recovered"] == 0


@pytest.mark.slow
def test_what_is_summed_securely_is_attacked_as_a_sum_and_its_labels_are_not_counted(attacked):
    found = attacked("trunk-secure")
    assert found.facts["seen"] == "sum over all clients"
    assert "labels/right" not in found.figures
    assert found.figures["inversion/gain"] < attacked("trunk").figures["inversion/gain"]


@pytest.mark.slow
def test_epsilon_is_told_of_the_unit_that_is_protected(attacked):
    budgets = {
        arm: {name for name in attacked(arm).figures if name.startswith("epsilon/")}
        for arm in ("trunk", "trunk-secure", "trunk-row-eps-1", "trunk-client")
    }
    assert budgets == {
        "trunk": set(),
        "trunk-secure": set(),
        "trunk-row-eps-1": {"epsilon/row"},
        "trunk-client": {"epsilon/client"},
    }
    assert attacked("trunk-row-eps-1").figures["epsilon/row"] == pytest.approx(1, rel=1e-2)


@pytest.mark.slow
def test_the_record_is_dropped_once_it_is_attacked_unless_it_is_to_stay(attacked, tmp_path):
    attacked("trunk")
    trial = Trial("digits", "one-step", "trunk", 0, tmp_path, QUICK, True, ONE_ROW)
    run_trial(trial)
    assert (trial.out / "wire").is_dir()
    run_trial(replace(trial, keep_wire=False))
    assert not (trial.out / "wire").exists()


@pytest.mark.slow
def test_the_command_writes_page_figures_and_tables(tmp_path, monkeypatch):
    known = DATASETS["digits"]
    scenes = {
        name: replace(known.scenes[name], settings=f"{known.scenes[name].settings} {more}")
        for name, more in (("one-step", FEW), ("unlike-tasks", "federation.rounds=1"))
    }
    monkeypatch.setitem(DATASETS, "digits", replace(known, scenes=scenes))
    app = typer.Typer()
    app.command()(utility_leakage.main)
    asked = ["digits", "--out", str(tmp_path / "out"), "--jobs", "1", "--iterations", "5"]
    result = CliRunner().invoke(app, [*asked, "--victims", "1", "--shadows", "20"])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "utility-leakage.html").read_text(encoding="utf-8")
    assert page.count('pixelated" alt=') == 1 + len(ARMS)  # the true rows, and every arm's
    figures = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(figures["datasets"]["digits"]) == ["one-step", "unlike-tasks"]
    assert list(figures["datasets"]["digits"]["one-step"]) == list(ARMS)
    unlike = figures["datasets"]["digits"]["unlike-tasks"]
    assert unlike["whole-model"]["figures"]["tasks/right"]["mean"] == 1  # heads stand still
    assert "trunk-secure" not in unlike
    assert "| trunk only |" in result.output


def test_an_unknown_data_set_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="data sets must be some of digits, faces, got 'faecs'"):
        utility_leakage.plan(["faecs"], 1, tmp_path)


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_trained(tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(CheckpointError, match=r"--out .*taken/out cannot be made .*choose another"):
        utility_leakage.make_folder(tmp_path / "taken" / "out")


def test_every_data_set_and_seed_meets_every_arm_of_its_scenes_once(tmp_path):
    trials = utility_leakage.plan(["digits", "digits"], 2, tmp_path)
    scenes = DATASETS["digits"].scenes.values()
    assert len(trials) == len(set(trials)) == 2 * sum(len(scene.arms) for scene in scenes)
    assert len({trial.out for trial in trials}) == len(trials)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_the_same_but_for_what_it_is_about(arm):
    plain = make_experiment("digits", "many-steps", "trunk", 0)
    own = make_experiment("digits", "many-steps", arm, 0)
    alike = {"data", "inputs", "tasks", "trunk", "training", "loss", "partition", "evaluation"}
    assert own.model_dump(include=alike) == plain.model_dump(include=alike)
    assert own.federation.rounds == plain.federation.rounds
    assert ARMS[arm].summed == (own.privacy.secure_aggregation is not None)


def outcome(**figures):
    return Outcome({name.replace("__", "/"): value for name, value in figures.items()}, {})


def test_a_table_holds_means_with_deviations_and_dashes_where_there_is_nothing():
    bare, hidden = (
        summarise(
            {
                "trunk": [
                    outcome(task__digit=0.8, utility=0.8, labels__right=0.9, labels__prior=0.5),
                    outcome(task__digit=0.6, utility=0.6, labels__right=0.7, labels__prior=0.5),
                ],
                "trunk-secure": [outcome(task__digit=0.7, utility=0.7)],
            }
        ),
        ["trunk only, secure sum", "0.700", "0.700", "-"],
    )
    useful, leaks = columns_of(bare).values()
    assert [column.heading for column in useful] == ["digit", "mean of tasks"]
    assert [column.heading for column in leaks] == ["labels right (prior's)"]
    first, second = cells_of(bare, [*useful, *leaks])
    assert first == ["trunk only", "0.700 ± 0.141", "0.700 ± 0.141", "0.80 ± 0.14 (0.50)"]
    assert second == hidden
    assert to_markdown("digits", DATASETS["digits"], {"one-step": bare}).count("| trunk") == 4
    assert any("Labels right" in text for text in notes_of(bare))
    assert not any("Epsilon" in text for text in notes_of(bare))


def test_a_seed_whose_attack_fails_is_drawn_at_nothing_taken_away():
    seeds = [outcome(utility=0.5, inversion__gain=gain) for gain in (-3.0, 0.5)]
    dot = trade_chart(summarise({"trunk": seeds})).traces[0]
    assert dot["x"] == [25]  # of 0 and 50 %
    assert dot["error_x"]["array"] == pytest.approx([50 / 2**0.5])
    assert trade_chart(summarise({"trunk": [outcome(utility=0.5)]})) is None


def test_pictures_lie_side_by_side_with_a_gap_between():
    import io

    from PIL import Image

    images = np.stack([np.zeros((1, 8, 8)), np.ones((1, 8, 8))])
    drawn = np.asarray(Image.open(io.BytesIO(strip_png(images))))
    assert drawn.shape == (72, 72 + 3 + 72)
    assert drawn[0, 0] == 0
    assert drawn[0, 73] == 128
    assert drawn[0, -1] == 255
