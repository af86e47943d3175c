"""Snapshots: which rounds a run keeps, whole, whatever ends it, and who may keep none."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from common.errors import CheckpointError, ConfigError
from common.experiment_file import load_experiment
from server.checkpoint import Checkpoints, Progress
from server.run_folder import RunFolder
from server.snapshots import Snapshots, refuse_snapshots
from simulations.kept_federation import open_federation, open_snapshots
from simulations.simulate import simulate

SETTINGS = [
    "federation.rounds=7",
    "partition.clients=4",
    "trunk.widths=[8]",
    "federation.snapshot-every=2",
    "federation.snapshots=2",
]
ENGINES = [("batched", 1), ("loopback", 1), ("loopback", 2)]

KILLED = """
import os, signal, sys
from pathlib import Path
from common.experiment_file import load_experiment
from server import snapshots
from simulations.simulate import simulate

whole = snapshots.Checkpoints.save
calls = []

def save(self, progress, trunk):
    whole(self, progress, trunk)
    if self.folder.parent.name == "snapshots":
        calls.append(progress.round)
        if len(calls) == 3:  # the snapshot is there, the round's checkpoint is not
            os.kill(os.getpid(), signal.SIGKILL)

snapshots.Checkpoints.save = save
simulate(load_experiment("digits", sys.argv[2:]), engine="batched", out=Path(sys.argv[1]))
"""


def keep(folder, round_number, *, everybody=False):
    assert everybody  # a snapshot has no earlier file that holds the others
    return {}


@pytest.fixture
def taken(tmp_path):
    """Snapshots after every second of seven rounds, of which two are kept."""
    snapshots = Snapshots(tmp_path / "snapshots", every=2, most=2, keep_clients=keep)
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    for number in range(1, 8):
        progress = Progress("print", round=number)
        snapshots.take(checkpoints, progress, {"trunk.w": np.full(2, number, np.float32)})
        assert progress.files == {}  # those of the run's own checkpoint are its own
    return snapshots


def test_the_newest_of_every_n_th_round_are_kept(taken):
    assert taken.rounds() == [4, 6]
    progress, trunk = taken.at(4).load("print")
    assert (progress.round, trunk["trunk.w"].tolist()) == (4, [4.0, 4.0])
    assert sorted(p.name for p in taken.folder.iterdir()) == ["round-00000004", "round-00000006"]


def test_what_a_resumed_run_does_anew_is_forgotten_and_so_are_halves(taken):
    half = taken.folder / "round-00000002"
    half.mkdir()
    (half / "trunk-00000002.safetensors").write_bytes(b"")
    taken.forget_after(5)
    assert [p.name for p in taken.folder.iterdir()] == ["round-00000004"]


def test_nothing_is_kept_unless_asked_for(tmp_path):
    snapshots = Snapshots(tmp_path / "snapshots")
    snapshots.take(Checkpoints(tmp_path), Progress("print", round=2), {})
    snapshots.forget_after(0)
    assert snapshots.rounds() == []
    assert not snapshots.folder.exists()


@pytest.mark.parametrize(("engine", "workers"), ENGINES)
def test_a_run_keeps_trunk_and_heads_of_all_clients(tmp_path, engine, workers):
    run = tmp_path / "run"
    experiment = load_experiment("digits", [*SETTINGS, "federation.clients-per-round=2"])
    simulate(experiment, engine=engine, workers=workers, out=run)
    kept = open_snapshots(run)
    assert [one.round for one in kept] == [4, 6, 7]
    short = load_experiment("digits", [*SETTINGS[1:3], "federation.clients-per-round=2"])
    federation = short.federation.model_copy(update={"rounds": 4})
    ended = tmp_path / "ended"
    simulate(
        short.model_copy(update={"federation": federation}),
        engine=engine, workers=workers, out=ended,
    )  # fmt: skip
    last = open_federation(ended)
    assert kept[0].own.keys() == last.own.keys()
    for client in last.own:
        one, other = kept[0].arrays_of(client), last.arrays_of(client)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_snapshot_is_of_its_own_round_where_the_run_returns_to_its_best(tmp_path):
    returning = [*SETTINGS, "evaluation.keep=best", "evaluation.by=message", "training.lr=0.05"]
    simulate(load_experiment("digits", returning), engine="batched", out=tmp_path / "run")
    simulate(load_experiment("digits", [*SETTINGS, "training.lr=0.05"]), engine="batched",
             out=tmp_path / "plain")  # fmt: skip
    kept = {one.round: one for one in open_snapshots(tmp_path / "run")}
    plain = {one.round: one for one in open_snapshots(tmp_path / "plain")}
    assert [*kept][-1] == json.loads((tmp_path / "run" / "results.json").read_text())["final"][
        "trunk-round"
    ]
    for number in kept.keys() & plain.keys():
        for client in plain[number].own:
            one, other = kept[number].arrays_of(client), plain[number].arrays_of(client)
            assert all(np.array_equal(one[name], other[name]) for name in other)
    assert {4, 6} <= kept.keys() & plain.keys()


def contents(run):
    return {
        path.relative_to(run): path.read_bytes()
        for path in sorted((run / "snapshots").rglob("*.safetensors"))
    }


@pytest.mark.slow
def test_killed_between_snapshot_and_checkpoint_and_resumed_keeps_the_same(tmp_path):
    settings = [*SETTINGS, "federation.checkpoint-interval-s=0"]
    simulate(load_experiment("digits", settings), engine="batched", out=tmp_path / "whole")
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), *settings],
        env=os.environ, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == -signal.SIGKILL
    manifest = json.loads((tmp_path / "run" / "checkpoint" / "checkpoint.json").read_text())
    assert manifest["round"] == 5
    assert 6 in RunFolder(tmp_path / "run").snapshots().rounds()
    experiment = load_experiment("digits", settings)
    simulate(experiment, engine="batched", out=tmp_path / "run", resume=True)
    assert [p.parent.name for p in contents(tmp_path / "run")] == [
        p.parent.name for p in contents(tmp_path / "whole")
    ]
    for one, other in zip(
        open_snapshots(tmp_path / "run"), open_snapshots(tmp_path / "whole"), strict=True
    ):
        for name, array in one.trunk.items():
            np.testing.assert_array_equal(array, other.trunk[name])


def test_snapshots_change_no_result_and_no_fingerprint(tmp_path):
    plain = load_experiment("digits", SETTINGS[:3])
    keeping = load_experiment("digits", SETTINGS)
    assert plain.fingerprint() == keeping.fingerprint()
    results = [
        simulate(experiment, engine="batched", out=tmp_path / name)["final"]
        for name, experiment in (("plain", plain), ("keeping", keeping))
    ]
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["federation.snapshots=3"], "for a federation.snapshot-every above 0, got 3 with 0"),
        (["federation.rounds=20", "federation.snapshot-every=20"], "below federation.rounds = 20"),
        (
            ["federation.snapshot-every=2", "federation.algorithm=fedbabu"],
            "'fedbabu', which fits heads after the last round only",
        ),
    ],
)
def test_what_would_keep_nothing_of_use_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        load_experiment("digits", settings)


def test_where_heads_are_elsewhere_snapshots_are_refused_before_a_folder_is_made(tmp_path):
    experiment = load_experiment("digits", SETTINGS)
    with pytest.raises(ConfigError, match="snapshot-every must be 0 in a deployment"):
        refuse_snapshots(experiment, "in a deployment")
    with pytest.raises(ConfigError, match="must be 0 on engine 'flower'"):
        simulate(experiment, engine="flower", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_without_snapshots_says_how_to_keep_some(tmp_path):
    experiment = load_experiment("digits", ["federation.rounds=1", *SETTINGS[1:3]])
    simulate(experiment, engine="batched", out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no snapshot of another round .* --set"):
        open_snapshots(tmp_path / "run")
