"""Whole runs in which clients are away, late or too few: the same on every engine."""

import json
import os
import signal
import subprocess
import sys
from html import escape

import numpy as np
import pytest

from client.session import close_sessions
from common.errors import ConfigError, NothingLearnedError
from common.experiment_file import load_experiment
from server.loop import RoundLoop
from simulations.check import check_clients
from simulations.report import write_report
from simulations.simulate import simulate
from tests.lossy_loopback import heads_at_home
from tests.test_simulations_resume import figures, kept

NAMES = [f"client-{number:03d}" for number in range(6)]
SMALL = ["partition.clients=6", "trunk.widths=[8]", "training.epochs=1", "federation.rounds=4"]
# Two of four clients, and a third one; a reply that takes 20 s misses the deadline.
DRAWN = ["federation.clients-per-round=2", "federation.round-timeout-s=10"]
REPEATED = [*DRAWN, "federation.least-replies=1.0", "federation.too-few=repeat"]
TRIMMED = "federation.strategy=trimmed-mean"
SLOW = ["client-000,1,9,20", "client-001,1,9,20", "client-002,2,9,3", "client-003,3,9,"]


def experiment(tmp_path, trace=(), settings=()):
    more = []
    if trace:
        text = "\n".join(["client,from-round,to-round,delay-s", *trace])
        (tmp_path / "trace.csv").write_text(text)
        more = [f"federation.availability={tmp_path / 'trace.csv'}"]
    return load_experiment("digits", [*SMALL, *more, *settings])


def who(run):
    """What the record says of who was asked, without figures."""
    keys = ("round", "clients", "lost-attempts", "skipped")
    return [{key: line[key] for key in keys} for line in figures(run)]


def losses(run):
    return [line["train"]["loss"] or 0.0 for line in figures(run)]


@pytest.mark.parametrize(
    "settings",
    [
        REPEATED,
        [*DRAWN, "federation.over-selection=0.5"],
        [*REPEATED, "federation.sampling=by-size"],
    ],
    ids=["repeated", "over-selection", "by size"],
)
def test_all_engines_ask_and_count_the_same_clients(tmp_path, settings, monkeypatch):
    settings = experiment(tmp_path, SLOW, settings)
    simulate(settings, engine="loopback", out=tmp_path / "loopback")
    simulate(settings, engine="loopback", workers=2, out=tmp_path / "workers")
    simulate(settings, engine="batched", out=tmp_path / "batched")
    # As a deployed node keeps its heads: on disk, by round.
    monkeypatch.setenv("FEDMTL_STATE", str(tmp_path / "state"))
    simulate(settings, engine="loopback", out=tmp_path / "folder")
    assert who(tmp_path / "batched") == who(tmp_path / "loopback")
    assert figures(tmp_path / "workers") == figures(tmp_path / "loopback")
    assert figures(tmp_path / "folder") == figures(tmp_path / "loopback")
    assert losses(tmp_path / "batched") == pytest.approx(losses(tmp_path / "loopback"), rel=1e-4)
    assert kept(tmp_path / "workers") == kept(tmp_path / "loopback")
    mine, other = heads_at_home(tmp_path / "loopback"), heads_at_home(tmp_path / "batched")
    assert mine.keys() == other.keys()
    for client, arrays in mine.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(other[client][name], array, atol=1e-4)
    if settings.federation.too_few == "repeat":
        assert any(line["lost-attempts"] for line in who(tmp_path / "loopback"))


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_straggler_has_trained_its_heads_and_lost_its_trunk(tmp_path, engine):
    everybody, one = ["federation.round-timeout-s=10"], ["federation.rounds=1"]
    late = experiment(tmp_path, ["client-000,1,9,20"], [*everybody, *one])
    simulate(late, engine=engine, out=tmp_path / "late")
    simulate(experiment(tmp_path, (), one), engine=engine, out=tmp_path / "none")
    assert who(tmp_path / "late")[0]["clients"] == {
        "asked": 6, "answered": 5, "left-out": {"client-000": "no answer in time"},
    }  # fmt: skip
    late_state, state = kept(tmp_path / "late"), kept(tmp_path / "none")
    heads = [name for name in state if not name.startswith(("trunk/", "strategy/"))]
    assert {name: late_state[name] for name in heads} == {name: state[name] for name in heads}
    assert late_state != state  # the trunk is another


@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("loopback", []),
        ("batched", []),
        ("loopback", ["federation.algorithm=scaffold", "training.optimiser=sgd"]),
        ("loopback", ["federation.algorithm=ditto"]),
    ],
)
def test_a_client_that_is_asked_again_starts_from_what_it_kept_before_the_round(
    tmp_path, engine, more
):
    # All are asked in every attempt, so three attempts must leave what one leaves, in what the
    # strategy remembers, too.
    late = ["client-000,2,2,20"]
    few = ["federation.round-timeout-s=10", "federation.least-replies=1.0"]
    few += more or ["federation.strategy=fedavgm"]
    for rule in ("skip", "repeat"):
        settings = experiment(tmp_path, late, [*few, f"federation.too-few={rule}"])
        results = simulate(settings, engine=engine, out=tmp_path / rule)
        assert results["skipped-rounds"] == 1
    assert results["repeats"] == 2
    assert len(who(tmp_path / "repeat")[1]["lost-attempts"]) == 2
    page = write_report(tmp_path / "repeat").read_text()
    assert "2 attempts with too few replies, after which the round was asked again." in page
    assert "1 round skipped, in which the trunk stayed as it was: usable replies: 5" in page
    assert kept(tmp_path / "repeat") == kept(tmp_path / "skip")


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_over_selection_closes_the_round_with_the_first_usable_replies(tmp_path, engine):
    trace = [f"{name},1,9,{number}" for number, name in enumerate(NAMES)]
    more = ["federation.clients-per-round=4", "federation.over-selection=0.5"]
    simulate(experiment(tmp_path, trace, more), engine=engine, out=tmp_path / "run")
    late = dict.fromkeys(NAMES[4:], "came after the round had closed")
    assert [line["clients"] for line in who(tmp_path / "run")] == [
        {"asked": 6, "answered": 4, "left-out": late}
    ] * 4


def test_ties_of_arrival_are_broken_by_the_seed_and_not_by_name(tmp_path):
    more = ["federation.clients-per-round=4", "federation.over-selection=0.5"]
    simulate(experiment(tmp_path, (), more), engine="batched", out=tmp_path / "run")
    assert len({tuple(line["clients"]["left-out"]) for line in who(tmp_path / "run")}) > 1


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_round_with_nobody_to_ask_is_skipped(tmp_path, engine, caplog):
    trace = [f"{name},{first},9," for name, first in zip(NAMES, [2, 3, 3, 3, 3, 3], strict=True)]
    results = simulate(experiment(tmp_path, trace), engine=engine, out=tmp_path / "run")
    assert "round 1 is skipped: no client was there" in caplog.text
    assert [line["clients"]["asked"] for line in who(tmp_path / "run")] == [0, 1, 6, 6]
    assert results["skipped-rounds"] == 1
    assert who(tmp_path / "run")[0]["skipped"] == "no client was there"


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_run_whose_rounds_all_lose_too_many_says_so(tmp_path, engine):
    trace = ["client-000,1,9,20"]
    more = ["federation.round-timeout-s=10", "federation.least-replies=1.0"]
    settings = experiment(tmp_path, trace, [*more, "federation.too-few=skip"])
    with pytest.raises(NothingLearnedError, match=r"4 of 4 rounds were skipped.*no answer in time"):
        simulate(settings, engine=engine, out=tmp_path / "run")


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_fewer_replies_than_the_strategy_needs_are_told_in_the_record(tmp_path, engine):
    trace = [f"{name},2,2," for name in NAMES[:2]]
    settings = experiment(tmp_path, trace, [TRIMMED])
    results = simulate(settings, engine=engine, out=tmp_path / "run")
    reason = "strategy 'trimmed-mean' needs 5 replies, 4 are usable"
    assert [line["skipped"] for line in who(tmp_path / "run")] == [reason, None, reason, reason]
    assert results["skipped-rounds"] == 3
    assert f"3 rounds skipped, in which the trunk stayed as it was: {escape(reason)} (3)" in (
        write_report(tmp_path / "run").read_text()
    )


def test_a_run_that_never_had_enough_replies_for_its_strategy_says_so(tmp_path):
    settings = experiment(tmp_path, [f"{NAMES[0]},9,9,", f"{NAMES[1]},9,9,"], [TRIMMED])
    needs = r"4 of 4 rounds were skipped \(strategy 'trimmed-mean' needs 5 replies, 4 are usable\)"
    with pytest.raises(NothingLearnedError, match=needs):
        simulate(settings, engine="loopback", out=tmp_path / "run")


def test_a_run_in_which_nobody_ever_was_there_says_so(tmp_path):
    settings = experiment(tmp_path, [f"{name},9,9," for name in NAMES])
    with pytest.raises(NothingLearnedError, match=r"4 of 4 rounds were skipped \(no client was"):
        simulate(settings, engine="loopback", out=tmp_path / "run")


def evaluations_of(losses):
    """Evaluations of these validation losses, the last one again and again."""
    measure, coming = RoundLoop._evaluation, iter(losses)

    def evaluate(self, trunk_round, sums):
        found = measure(self, trunk_round, sums)
        found["validation"]["loss"] = next(coming, losses[-1])
        return found

    return evaluate


@pytest.mark.parametrize("by", ["train-reply", "message"])
def test_patience_does_not_count_rounds_in_which_the_trunk_stayed(tmp_path, by, monkeypatch):
    few = ["federation.round-timeout-s=10", "federation.least-replies=1.0"]
    few += ["federation.too-few=skip", "federation.rounds=7"]
    more = [f"evaluation.by={by}", "evaluation.every=1", "evaluation.patience=2"]
    settings = experiment(tmp_path, ["client-000,2,5,20"], [*few, *more])
    monkeypatch.setattr(RoundLoop, "_evaluation", evaluations_of([5.0, 9, 9, 9, 9, 4, 3]))
    results = simulate(settings, engine="loopback", out=tmp_path / "run")
    assert results["skipped-rounds"] == 4
    assert results["stopped"] == "all rounds done"


def test_patience_counts_trunks_that_moved_and_are_no_better(tmp_path, monkeypatch):
    more = ["evaluation.every=1", "evaluation.patience=2"]
    monkeypatch.setattr(RoundLoop, "_evaluation", evaluations_of([5.0, 9, 9, 9]))
    results = simulate(experiment(tmp_path, (), more), engine="loopback", out=tmp_path / "run")
    assert (results["rounds"], results["stopped"]) == (
        3, "early: no better validation loss in 2 evaluations",
    )  # fmt: skip


def test_a_simulated_deadline_does_not_count_real_time(tmp_path):
    more = ["federation.round-timeout-s=1e-9"]
    results = simulate(
        experiment(tmp_path, ["client-000,1,9,1"], more), engine="loopback", out=tmp_path / "run"
    )
    assert {line["clients"]["answered"] for line in who(tmp_path / "run")} == {5}
    assert results["rounds"] == 4


def test_delays_are_refused_where_real_time_counts(tmp_path):
    settings = experiment(tmp_path, ["client-000,1,9,1"])
    with pytest.raises(ConfigError, match="delay-s other than 0 on engine 'flower'"):
        simulate(settings, engine="flower", out=tmp_path / "run")


def test_a_trace_of_strangers_is_refused_before_the_first_round(tmp_path):
    with pytest.raises(ConfigError, match=r"line 2: client must be one of the 6 clients.*'zoe'"):
        simulate(experiment(tmp_path, ["zoe,1,2,"]), engine="loopback", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="line 2: client must be one of the 6 clients"):
        check_clients(experiment(tmp_path, ["zoe,1,2,"]))


KILLED = """
import os, signal, sys
from pathlib import Path
from common.experiment_file import load_experiment
from server.loop import RoundLoop
from simulations.simulate import simulate

gather, asked = RoundLoop._gather, []

def kill_at(self):
    asked.append(self.progress.round)
    if len(asked) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    gather(self)

RoundLoop._gather = kill_at
simulate(load_experiment(sys.argv[1]), engine=sys.argv[4], out=Path(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_killed_between_two_attempts_and_resumed_equals_never_killed(tmp_path, engine):
    more = ["federation.checkpoint-interval-s=0", "seed=1"]  # which loses attempts after round 1
    settings = experiment(tmp_path, SLOW, [*REPEATED, *more])
    simulate(settings, engine=engine, out=tmp_path / "whole")
    lines = who(tmp_path / "whole")
    first = next(n for n, line in enumerate(lines) if line["lost-attempts"] and n)
    # One look at who is there before each round, and one before each repeat.
    looks = sum(1 + len(line["lost-attempts"]) for line in lines[:first]) + 2
    file, broken = tmp_path / "whole" / "experiment.toml", tmp_path / "broken"
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), str(broken), str(looks), engine],
        env=os.environ,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    assert len(figures(broken)) == first
    close_sessions()
    simulate(settings, engine=engine, out=broken, resume=True)
    assert kept(broken) == kept(tmp_path / "whole")
    assert figures(broken) == figures(tmp_path / "whole")
    both = [
        json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "broken")
    ]
    assert both[0]["repeats"] == both[1]["repeats"] > 0


def test_engines_agree_where_groups_of_clients_are_sent_different_trunks(tmp_path):
    trace = [f"{name},1,9,{number}" for number, name in enumerate(NAMES)]
    groups = ["federation.strategy=clustered", "federation.strategy-options.every=1"]
    few = ["federation.clients-per-round=4", "federation.over-selection=0.5"]
    settings = experiment(tmp_path, trace, [*groups, *few, "federation.rounds=5"])
    for engine in ("loopback", "batched"):
        simulate(settings, engine=engine, out=tmp_path / engine)
    assert who(tmp_path / "batched") == who(tmp_path / "loopback")
    assert losses(tmp_path / "batched") == pytest.approx(losses(tmp_path / "loopback"), rel=1e-4)
    assert all(line["clients"]["answered"] == 4 for line in who(tmp_path / "loopback"))
