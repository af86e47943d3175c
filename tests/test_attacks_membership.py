"""Membership inference on finished runs: it finds what is there, and nothing where nothing is."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from client.place import Place
from client.session import close_sessions, lent_rows, open_rows
from common.errors import CheckpointError
from common.experiment_file import load_experiment
from simulations.attacks.candidates import divide_clients, draw_halves
from simulations.attacks.lira import Shadows, likelihood_ratios
from simulations.attacks.membership import Attack, describe_scores, infer_membership, score_rows
from simulations.attacks.membership_page import make_page
from simulations.attacks.other_rows import PreparedRows
from simulations.attacks.roc import summarise
from simulations.attacks.shadow_federations import shadow_experiment, train_shadow
from simulations.cli import app
from simulations.kept_federation import open_federation
from simulations.simulate import simulate
from tests.kept_models import write_federation

# Twelve clients with 20 training rows each, which they learn by heart.
SMALL = ["partition.clients=12", "data.test=0.7", "data.validation=0.17", "trunk.widths=[64]",
         "training.epochs=30", "federation.rounds=3"]  # fmt: skip


def run_digits(out, *settings):
    simulate(load_experiment("digits", [*SMALL, *settings]), engine="batched", out=out)
    return out


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory):
    return run_digits(tmp_path_factory.mktemp("overfitted") / "run")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A run with every kind of input and task, and gaps in both."""
    folder = tmp_path_factory.mktemp("kinds")
    simulate(write_federation(folder), engine="loopback", out=folder / "run")
    return folder / "run"


def fedmtl(*arguments):
    return CliRunner().invoke(app, ["attack", "membership", *map(str, arguments)])


def error_of(result):
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def score_inside(kept, prepared):
    return score_rows(kept, prepared, ["insider"])["insider"]


def auc(figures, attacker, method="threshold"):
    return figures["attackers"][attacker]["methods"][method]["auc"]


def test_rows_learnt_by_heart_are_told_from_others(overfitted):
    figures = infer_membership(overfitted, Attack())
    assert auc(figures, "insider")["low"] > 0.7
    found = figures["attackers"]["insider"]["methods"]["threshold"]
    candidates = divide_clients(load_experiment(str(overfitted / "experiment.toml")))
    assert found["members"] == sum(int(own.members.sum()) for own in candidates.values())
    assert found["roc"]["fpr"][0] == 0
    assert found["roc"]["tpr"][-1] == 1


def test_who_does_not_know_the_heads_finds_less(overfitted):
    figures = infer_membership(overfitted, Attack())
    assert auc(figures, "server")["high"] < auc(figures, "insider")["low"]


def test_members_by_the_toss_of_a_coin_are_not_found(overfitted):
    kept = open_federation(overfitted)
    candidates = divide_clients(kept.experiment)
    scores = -score_inside(kept, {n: c.as_attacked() for n, c in candidates.items()}).loss
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(40):
        found = describe_scores(scores, rng.random(len(scores)) < 0.5)["auc"]
        held += found["low"] <= 0.5 <= found["high"]
    assert held >= 34  # of 40 at 95 %


@pytest.mark.slow
def test_shadows_tell_members_from_others_and_coins_from_neither(overfitted):
    """One shadow federation is attacked by the others, so that members are known and by chance."""
    kept = open_federation(overfitted)
    candidates = divide_clients(kept.experiment)
    drawn = draw_halves(candidates, 9, seed=0)
    scores = []
    for number in range(9):
        prepared = {n: own.trained_on(drawn[n][number]) for n, own in candidates.items()}
        shadow = train_shadow(kept.experiment, prepared, number)
        scores.append(score_inside(shadow, prepared).confidence)
    included = np.concatenate([drawn[name] for name in candidates], axis=1)
    shadows = Shadows(np.stack(scores[1:]), included[1:])
    coins = np.random.default_rng(1).random(included.shape[1]) < 0.5
    for online in (True, False):
        ratios = likelihood_ratios(scores[0], shadows, online=online)
        assert summarise(ratios[included[0]], ratios[~included[0]])["auc"]["low"] > 0.6
        nothing = summarise(ratios[coins], ratios[~coins])["auc"]
        assert nothing["low"] < 0.5 < nothing["high"]


@pytest.mark.slow
def test_every_kind_of_input_and_task_can_be_attacked(every_kind, tmp_path):
    result = fedmtl(
        every_kind, "--method", "lira", "--shadows", 4, "--json", "--out", tmp_path / "a"
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    for found in figures["attackers"].values():
        assert list(found["methods"]) == ["threshold", "lira online", "lira offline"]
        assert all(0 <= method["auc"]["value"] <= 1 for method in found["methods"].values())
    assert json.loads((tmp_path / "a/attack-membership.json").read_text()) == figures
    assert "lira online" in (tmp_path / "a/attack-membership.html").read_text()


def test_an_attack_repeats_exactly(every_kind):
    one, two = (infer_membership(every_kind, Attack()) for _ in range(2))
    assert one["attackers"] == two["attackers"]


def test_the_page_escapes_and_tells_what_each_attacker_knows(every_kind):
    figures = infer_membership(every_kind, Attack())
    page = make_page({**figures, "experiment": "<b>"})
    assert "<b>" not in page.split("<script")[0]
    assert "every client&#x27;s own heads" in page


def test_the_table_tells_both_attackers(every_kind):
    result = fedmtl(every_kind)
    assert result.exit_code == 0, result.output
    assert "insider" in result.stdout
    assert "server" in result.stdout


def test_every_row_is_in_half_of_the_shadows_and_no_client_is_without():
    candidates = divide_clients(load_experiment("digits", ["partition.clients=300"]))
    drawn = draw_halves(candidates, 6, seed=0)
    together = np.concatenate(list(drawn.values()), axis=1)
    assert (together.sum(0) >= 3).all()
    assert (together.sum(0) == 3).mean() > 0.9
    assert all(chosen.any(1).all() for chosen in drawn.values())


def test_the_attacker_s_rows_are_none_of_those_in_question(overfitted):
    for own in divide_clients(load_experiment(str(overfitted / "experiment.toml"))).values():
        assert not set(own.auxiliary) & set(own.rows)
        np.testing.assert_array_equal(own.rows[own.members], own.prepared.splits["train"])
        assert len(own.auxiliary) >= len(own.rows) - own.members.sum() - 1


def test_a_shadow_has_another_seed_and_the_run_s_settings(overfitted):
    experiment = open_federation(overfitted).experiment
    shadows = [shadow_experiment(experiment, number) for number in range(3)]
    assert len({experiment.seed, *(shadow.seed for shadow in shadows)}) == 4
    same = shadows[0].model_copy(
        update={"seed": experiment.seed, "evaluation": experiment.evaluation}
    )
    assert same == experiment


def test_lent_rows_are_those_that_clients_get_and_are_given_back():
    experiment = load_experiment("digits", ["partition.clients=3"])
    candidates = divide_clients(experiment)
    first, text = next(iter(candidates)), experiment.for_clients()
    halves = draw_halves(candidates, 4, seed=0)
    rows = PreparedRows(experiment, {n: c.trained_on(halves[n][0]) for n, c in candidates.items()})
    with lent_rows(rows):
        described = open_rows(text, Place()).describe(first)
    after = open_rows(text, Place()).describe(first)
    close_sessions()
    assert described.examples["train"] == halves[first][0].sum()
    assert after.examples["train"] == candidates[first].members.sum()


def test_a_run_without_held_out_rows_is_refused(tmp_path):
    run = run_digits(tmp_path / "run", "data.test=0", "data.validation=0", "training.epochs=1",
                     "federation.rounds=1")  # fmt: skip
    assert error_of(fedmtl(run)).startswith("error: the run must have held out rows")


def test_a_run_without_its_clients_heads_is_open_to_the_server_alone(overfitted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(overfitted, run)
    manifest = run / "checkpoint/checkpoint.json"
    progress = json.loads(manifest.read_text())
    progress["files"] = {k: v for k, v in progress["files"].items() if not k.startswith("clients")}
    manifest.write_text(json.dumps(progress))
    line = error_of(fedmtl(run))
    assert "must hold what clients keep at home" in line
    assert "--attacker server" in line
    assert list(infer_membership(run, Attack(attackers=["server"]))["attackers"]) == ["server"]


def test_a_federation_that_shares_nothing_has_no_server_to_fear(tmp_path):
    run = run_digits(tmp_path / "run", 'federation.algorithm="local"', "training.epochs=1",
                     "federation.rounds=1")  # fmt: skip
    assert "needs a run that sends a trunk" in error_of(fedmtl(run))
    assert fedmtl(run, "--attacker", "insider").exit_code == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--method", "lira", "--shadows", "3"], "--shadows must be at least 4"),
        (["--shadows", "8"], "--shadows is for --method lira"),
        (["--method", "magic"], "--method must be one of threshold, lira"),
        (["--attacker", "nobody"], "--attacker must be insider, server or both, got 'nobody'"),
    ],
)
def test_bad_options_are_told_in_a_line(overfitted, options, what):
    assert what in error_of(fedmtl(overfitted, *options))


def test_what_is_no_run_is_refused(tmp_path):
    assert "is no run folder" in error_of(fedmtl(tmp_path))
    with pytest.raises(CheckpointError):
        infer_membership(tmp_path, Attack())


def test_a_diverged_model_is_told(tmp_path):
    run = run_digits(tmp_path / "run", "training.epochs=1", "federation.rounds=1")
    (path,) = (run / "checkpoint").glob("trunk-*.safetensors")
    save_file({name: np.full_like(a, np.nan) for name, a in load_file(path).items()}, path)
    assert "the attacked model may have diverged" in error_of(fedmtl(run))
