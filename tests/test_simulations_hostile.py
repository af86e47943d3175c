"""Hostile clients: what each attack sends, who they are, and that the rest of a run is honest."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from client.session import close_sessions
from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from simulations.benchmarks.hostile_clients import main
from simulations.cli import app
from simulations.hostile import ATTACKS, Hostile, parse_hostile
from simulations.simulate import simulate
from tests.lossy_loopback import heads_at_home
from tests.test_simulations_resume import figures, kept

NAMES = ["anna", "bert", "cleo", "dora", "emil"]
BEFORE, AFTER = np.array([1.0, 2.0], np.float32), np.array([2.0, 0.0], np.float32)  # update 1, -2
SMALL = ["partition.clients=5", "trunk.widths=[8]", "training.epochs=1", "federation.rounds=3"]


def hostile(attack):
    return Hostile(attack, frozenset({"bert"}))


@pytest.mark.parametrize(
    ("attack", "sent"),
    [("sign-flip", [0.0, 4.0]), ("scaled", [11.0, -18.0]), ("nan", [np.nan] * 2)],
)
def test_each_attack_sends_what_it_says(attack, sent):
    np.testing.assert_array_equal(hostile(attack).distort("bert", BEFORE, AFTER), sent)


def test_a_replayed_update_is_that_of_the_first_round_on_the_trunk_of_this_one():
    attackers = hostile("replayed")
    assert attackers.distort("bert", BEFORE, AFTER).tolist() == [2.0, 0.0]
    assert attackers.distort("bert", BEFORE + 10, AFTER).tolist() == [12.0, 10.0]


@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_clients_send_what_they_trained(attack):
    attackers = hostile(attack)
    rows = np.stack([AFTER, AFTER])
    sent = attackers.distort_rows(["anna", "bert"], BEFORE, rows)
    assert sent[0].tolist() == AFTER.tolist()
    assert rows[1].tolist() == AFTER.tolist()  # the engine's own memory is left alone


def test_a_share_of_the_clients_is_hostile_by_the_seed_whatever_their_order():
    drawn = [Hostile.draw("nan", 0.4, NAMES, seed).clients for seed in range(20)]
    assert {len(clients) for clients in drawn} == {2}
    assert len(set(drawn)) > 3
    assert Hostile.draw("nan", 0.4, NAMES[::-1], 7).clients == drawn[7]


@pytest.mark.parametrize("share", [0.05, 0.95])
def test_a_share_that_is_nobody_or_everybody_is_refused(share):
    with pytest.raises(ConfigError, match="leave one honest"):
        Hostile.draw("nan", share, NAMES, 0)


@pytest.mark.parametrize("text", ["sign-flip", "sign-flip=", "sign-flip=1", "flip=0.2", "nan=x"])
def test_what_is_no_attack_and_share_is_refused(text):
    with pytest.raises(ConfigError, match=r"as in sign-flip=0\.2"):
        parse_hostile(text)


@pytest.mark.parametrize("attack", ATTACKS)
def test_engines_send_the_same_wrong_trunks(tmp_path, attack):
    losses = {}
    for engine, workers in (("loopback", 1), ("loopback", 2), ("batched", 1)):
        settings = load_experiment("digits", SMALL)
        attackers = Hostile(attack, frozenset({"client-001", "client-003"}))
        out = tmp_path / f"{engine}-{workers}"
        simulate(settings, engine=engine, workers=workers, out=out, hostile=attackers)
        losses[engine, workers] = [line["train"]["loss"] for line in figures(out)]
    assert losses["loopback", 1] == losses["loopback", 2]
    assert losses["batched", 1] == pytest.approx(losses["loopback", 1], rel=1e-3)


def test_who_sends_no_trunk_cannot_be_hostile(tmp_path):
    settings = load_experiment("digits", [*SMALL, "federation.algorithm=local"])
    attackers = Hostile("nan", frozenset({"client-001"}))
    with pytest.raises(ConfigError, match=r"sends a trunk, got 'local'.*remove the option"):
        simulate(settings, engine="loopback", out=tmp_path / "run", hostile=attackers)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_only_the_trunk_that_is_sent_is_wrong(tmp_path, engine):
    settings = load_experiment("digits", [*SMALL, "federation.rounds=1"])
    simulate(settings, engine=engine, out=tmp_path / "clean")
    simulate(
        settings,
        engine=engine,
        out=tmp_path / "hostile",
        hostile=Hostile("sign-flip", frozenset({"client-001"})),
    )
    clean, wrong = kept(tmp_path / "clean"), kept(tmp_path / "hostile")
    changed = {name for name in clean if clean[name] != wrong[name]}
    # The server's own affinity is measured from what was sent.
    changed -= {name for name in clean if name.startswith("strategy/affinity.")}
    assert changed == {name for name in clean if name.startswith("trunk/")}
    assert figures(tmp_path / "clean") == figures(tmp_path / "hostile")  # of the trunk before
    assert heads_at_home(tmp_path / "hostile").keys() == heads_at_home(tmp_path / "clean").keys()


def test_a_client_that_sends_nan_is_left_out_by_every_strategy(tmp_path):
    settings = load_experiment("digits", SMALL)
    attackers = Hostile("nan", frozenset({"client-001"}))
    simulate(settings, engine="batched", out=tmp_path / "run", hostile=attackers)
    for line in figures(tmp_path / "run"):
        assert list(line["clients"]["left-out"]) == ["client-001"]


def test_a_resumed_run_has_the_hostile_clients_it_had(tmp_path):
    settings = [*SMALL, "federation.checkpoint-interval-s=0"]
    attackers = Hostile("scaled", frozenset({"client-001"}), factor=3.0)
    whole = load_experiment("digits", settings)
    simulate(whole, engine="batched", out=tmp_path / "whole", hostile=attackers)
    short = load_experiment("digits", [*settings, "federation.rounds=1"])
    simulate(short, engine="batched", out=tmp_path / "run", hostile=attackers)
    close_sessions()
    simulate(whole, engine="batched", out=tmp_path / "run", resume=True)
    assert kept(tmp_path / "run") == kept(tmp_path / "whole")


def test_a_run_whose_hostile_clients_repeat_themselves_cannot_be_resumed(tmp_path):
    settings = load_experiment("digits", SMALL)
    attackers = Hostile("replayed", frozenset({"client-001"}))
    simulate(settings, engine="batched", out=tmp_path / "run", hostile=attackers)
    with pytest.raises(CheckpointError, match="what its hostile clients send again was not kept"):
        simulate(settings, engine="batched", out=tmp_path / "run", resume=True)


def test_the_command_names_who_is_hostile(tmp_path):
    more = [part for setting in SMALL for part in ("--set", setting)]
    command = ["simulate", "--hostile", "nan=0.2", "--out", str(tmp_path / "run"), "-q", *more]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    told = json.loads((tmp_path / "run" / "hostile.json").read_text())
    assert len(told["clients"]) == 1
    assert f"hostile (nan): {told['clients'][0]}" in done.stderr
    assert "1 client, nan" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_benchmark_shows_what_the_mean_loses(tmp_path):
    command = ["--strategies", "fedavg", "--seeds", "2", "--set", "federation.rounds=20"]
    bench = typer.Typer()
    bench.command()(main)
    done = CliRunner().invoke(bench, [*command, "--out", str(tmp_path / "t.md")])
    assert done.exit_code == 0
    table = (tmp_path / "t.md").read_text()
    assert table in done.stdout
    cells = [cell.strip() for cell in table.splitlines()[-1].split("|")[2:-1]]
    by_attack = dict(zip(("none", "sign-flip", "scaled", "nan", "replayed"), cells, strict=True))
    assert by_attack["scaled"].startswith("**")
    assert not by_attack["nan"].startswith("**")  # left out by the checks, whatever the strategy


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize("closing", [[], ["least-replies=0.5", "too-few=skip"]])
def test_who_sends_nan_is_among_those_that_bulyan_withstands(tmp_path, engine, closing):
    """Seven clients with f = 1 learn from the six others, however a round is closed."""
    more = ["partition.clients=7", "federation.strategy=bulyan", "federation.rounds=2"]
    more += [f"federation.{setting}" for setting in closing]
    settings = load_experiment("digits", [*SMALL, *more])
    attacker = Hostile("nan", frozenset({"client-001"}))
    results = simulate(settings, engine=engine, out=tmp_path, hostile=attacker)
    assert results["skipped-rounds"] == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["clients"]["answered"] for line in lines] == [6, 6]
