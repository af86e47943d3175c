"""Weights & Biases, offline: what its files hold, and that nothing leaves the machine."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulations.cli import app
from simulations.run_record import read_run

pytest.importorskip("wandb")
pytestmark = pytest.mark.slow

SHORT = ["--engine", "batched", "-q", "--track", "wandb"]

# Takes a run with the library told to go online, and prints whom it spoke to.
WATCHED = """
import os, sys
spoken = []
NETWORK = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"}

def watch(event, arguments):
    if event in NETWORK:
        address = arguments[-1] if event != "socket.getaddrinfo" else arguments[0]
        spoken.append(address)

sys.addaudithook(watch)
from pathlib import Path
from common.experiment_file import load_experiment
from simulations.wandb_tracker import open_tracker
from simulations.tracking import Point

folder = Path(sys.argv[1])
tracker = open_tracker(folder, load_experiment("digits"), "run", "")
tracker.log([Point("a", 1.0, 0)])

def children(pid):
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    return [child for child, parent in parents.items() if parent == pid]

def sockets(pid):
    inodes = {os.readlink(f)[8:-1] for f in Path(f"/proc/{pid}/fd").iterdir()
              if os.path.lexists(f) and os.readlink(f).startswith("socket:[")}
    lines = [line.split() for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6")
             for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]]
    return [line for line in lines if line[9] in inodes]

working = [os.getpid(), *children(os.getpid())]
print(len(working), [s for pid in working for s in sockets(pid)])
tracker.close(is_whole=True)
print([address for address in spoken if not isinstance(address, (str, bytes))])
"""


@pytest.fixture
def fedmtl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def records_of(folder: Path):
    """Read the one offline file of a run folder."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    store, found = DataStore(), []
    store.open_for_scan(str(path))
    while (data := store.scan_data()) is not None:
        found.append(Record())
        found[-1].ParseFromString(data)
    store.close()
    return found


def history_of(folder: Path):
    lines = [r.history for r in records_of(folder) if r.HasField("history")]
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in line.item}
        for line in lines
    ]


def run_of(folder: Path):
    (run,) = [r.run for r in records_of(folder) if r.HasField("run")]
    config = {i.key: json.loads(i.value_json) for i in run.config.update}
    return run, config


def test_one_run_has_settings_and_figures_after_a_resume(fedmtl, tmp_path):
    made = fedmtl("simulate", *SHORT, "--set", "federation.rounds=3", "--out", "run")
    assert made.exit_code == 0, made.output
    number = (tmp_path / "run" / "wandb-run").read_text()
    more = ["--resume", "run", "--set", "federation.rounds=5", "-q", "--track", "wandb"]
    assert fedmtl("simulate", *more).exit_code == 0
    run, config = run_of(tmp_path / "run")
    assert (run.run_id, run.display_name, run.project) == (number, "run", "digits")
    assert config["federation.rounds"] == 5
    lines = history_of(tmp_path / "run")
    key = "validation/digit/accuracy"
    told = {line["round"]: line[key] for line in lines if key in line}
    evaluations = read_run(tmp_path / "run").evaluations
    assert told == {
        e["trunk-round"]: e["validation"]["tasks"]["digit"]["accuracy"] for e in evaluations
    }
    assert [line["round"] for line in lines if "traffic/sent-bytes" in line] == [1, 2, 3, 4, 5]
    exits = [r.exit.exit_code for r in records_of(tmp_path / "run") if r.HasField("exit")]
    assert exits == [0]


def test_files_tell_of_figures_and_settings_alone(fedmtl, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_USERNAME", "somebody-private")
    made = fedmtl("simulate", *SHORT, "--set", "federation.rounds=1", "--out", "run")
    assert made.exit_code == 0, made.output
    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert not list((folder / "files").iterdir())  # no code, requirements, host or command
    content = (folder / f"run-{(tmp_path / 'run' / 'wandb-run').read_text()}.wandb").read_bytes()
    for private in ("somebody-private", str(tmp_path), platform.node(), sys.executable):
        assert private.encode() not in content
    kinds = {record.WhichOneof("record_type") for record in records_of(tmp_path / "run")}
    assert kinds <= {
        "header", "run", "telemetry", "metric", "summary", "history", "exit", "final", "footer",
    }  # fmt: skip
    keys = {key for line in history_of(tmp_path / "run") for key in line}
    known = ("train/", "validation/", "test/", "weight/", "traffic/", "clients/", "time/")
    assert all(key.startswith(known) for key in keys - {"round", "_step", "_runtime", "_timestamp"})


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux's /proc")
def test_no_network_socket_is_opened_whatever_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # that of another test's run
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert int(first.split()[0]) >= 2  # the library's own process is among those looked at
    assert first.endswith(" []")
    assert second == "[]"


def test_the_runs_of_a_comparison_and_of_a_search_are_groups(fedmtl, tmp_path):
    pytest.importorskip("optuna")
    short = ["--set", "federation.rounds=1", "--track", "wandb"]
    vary = ["--vary", "training.lr=0.1,0.2", "--no-yardstick", "--seeds", "1"]
    made = fedmtl("compare", "digits", *vary, *short, "--out", "cmp")
    assert made.exit_code == 0, made.output
    made = fedmtl(
        "tune", "digits", "--space", "training.lr=[0.1, 0.2]", "--trials", "1", *short,
        "--out", "search",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    for top, names in (
        ("cmp", ["seed-0/training.lr=0.1", "seed-0/training.lr=0.2"]),
        ("search", ["trials/0000/seed-0", "trials/own-settings/seed-0"]),
    ):
        for name in names:
            run, _ = run_of(tmp_path / top / name)
            assert (run.display_name, run.run_group) == (f"{top}/{name}", top)
