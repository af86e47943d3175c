"""A run killed after any round and resumed is bit for bit the run that was never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from client.session import close_sessions
from common.architectures.table import SHARINGS
from common.errors import CheckpointError
from common.experiment_file import load_experiment
from common.strategies import STRATEGIES
from simulations.client_log import ClientLog
from simulations.simulate import simulate

SETTINGS = [
    "federation.rounds=6",
    "federation.clients-per-round=4",
    "trunk.widths=[8]",
    "trunk.dropout=0.2",
    "training.optimiser=adam",
    "training.lr=0.01",
]
HOME_NORMS = ["trunk.norm=batch", "trunk.norm-parameters=local"]
SCHEDULED = [
    "training.schedule=cosine",
    "training.schedule-options.warm-up=2",
    "training.step-schedule=cyclic",
    "training.clip-norm=1.0",
]
KILLED = """
import os, signal, sys
from pathlib import Path
from common.experiment_file import load_experiment
from simulations.simulate import simulate

def kill_after(line):
    if line["round"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)

engine, workers = sys.argv[2].split(":")
simulate(load_experiment("digits", sys.argv[3:]), engine=engine, workers=int(workers),
         out=Path(sys.argv[1]), listener=kill_after)
"""


def kept(run: Path) -> dict[str, bytes]:
    """Everything the checkpoint holds: trunk, strategy and clients, as bytes."""
    folder = run / "checkpoint"
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    arrays = {
        f"{role}/{k}": v.tobytes()
        for role in {"trunk", "strategy"} & files.keys()
        for k, v in load_file(folder / files[role]).items()
    }
    for client, own in ClientLog().restore(folder, files).items():
        arrays[f"{client}/round"] = str(own.round).encode()
        arrays |= {f"{client}/{name}": array.tobytes() for name, array in own.arrays.items()}
    return arrays


def figures(run: Path) -> list[dict]:
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]


CASES = {
    "loopback": ("loopback", 1, []),
    "two workers": ("loopback", 2, []),
    "batched": ("batched", 1, []),
    "scheduled": ("loopback", 1, SCHEDULED),
    "scheduled, batched": ("batched", 1, SCHEDULED),
    "norms at home": ("loopback", 1, HOME_NORMS),
    "norms at home, batched": ("batched", 1, HOME_NORMS),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c.startswith("scheduled") else c for c in CASES],
)
def test_killed_and_resumed_equals_never_killed(tmp_path, case):
    engine, workers, more = CASES[case]
    settings = [*SETTINGS, *more]
    experiment = load_experiment("digits", settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(experiment, engine=engine, workers=workers, out=whole)
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(broken), f"{engine}:{workers}", *settings],
        env=os.environ,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    assert len(figures(broken)) == 3
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "torn')  # killed in the middle of a line
    simulate(experiment, engine=engine, workers=workers, out=broken, resume=True)
    assert kept(broken) == kept(whole)
    assert any("heads.task-digit" in name for name in kept(whole))
    at_home = {name for name in kept(whole) if "norm_variance" in name}
    assert bool(at_home) == (more is HOME_NORMS)
    assert not any(name.startswith("trunk/") for name in at_home)
    assert figures(broken) == figures(whole)
    final = [json.loads((run / "results.json").read_text())["final"] for run in (whole, broken)]
    assert final[0] == final[1]


def test_more_rounds_can_be_asked_for_when_resuming(tmp_path):
    short = load_experiment("digits", [*SETTINGS, "federation.rounds=2"])
    longer = load_experiment("digits", [*SETTINGS, "federation.rounds=3"])
    simulate(short, engine="loopback", out=tmp_path / "run")
    simulate(longer, engine="loopback", out=tmp_path / "run", resume=True)
    simulate(longer, engine="loopback", out=tmp_path / "once")
    assert kept(tmp_path / "run") == kept(tmp_path / "once")


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_sharing_architecture_resumes_bit_for_bit_on_any_number_of_workers(tmp_path, sharing):
    settings = [
        *SETTINGS,
        f"trunk.sharing={sharing}",
        "partition.clients=4",
        "federation.clients-per-round=3",
        "partition.task-skew=rotate",
        "partition.tasks-per-client=2",
    ]
    short = load_experiment("digits", [*settings, "federation.rounds=2"])
    longer = load_experiment("digits", [*settings, "federation.rounds=3"])
    simulate(short, engine="loopback", out=tmp_path / "run")
    simulate(longer, engine="loopback", out=tmp_path / "run", resume=True)
    simulate(longer, engine="loopback", workers=2, out=tmp_path / "once")
    once = kept(tmp_path / "once")
    assert kept(tmp_path / "run") == once
    assert figures(tmp_path / "run") == figures(tmp_path / "once")
    at_home = "home" in SHARINGS[sharing].task_parts
    assert any("/trunk." in name for name in once if not name.startswith("trunk/")) == at_home


MEMORIES = {
    "uncertainty, global": ["loss.weighting=uncertainty"],
    "famo, local": ["loss.weighting=famo", "loss.scope=local"],
    "gradnorm, local, scaled": [
        "loss.weighting=gradnorm",
        "loss.scaling=running-mean",
        "loss.scope=local",
    ],
    "dwa, global": ["loss.weighting=dwa"],
    "smooth tchebycheff, global": ["loss.weighting=smooth-tchebycheff"],
    "gradvac": ["loss.weighting=gradvac"],  # remembers within a round, and draws
    "random": ["loss.weighting=random", "loss.record=gradients"],
}


OFTEN = ("uncertainty, global", "famo, local", "gradvac")  # the others: by hand, with -m slow


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in OFTEN else pytest.mark.slow) for c in MEMORIES]
)
def test_what_loss_weighting_remembers_survives_resuming_bit_for_bit(tmp_path, case):
    settings = [*SETTINGS, *MEMORIES[case], "federation.rounds=3", "partition.clients=4"]
    longer = load_experiment("digits", [*settings, "federation.clients-per-round=3"])
    short = load_experiment(
        "digits", [*settings, "federation.clients-per-round=3", "federation.rounds=1"]
    )
    simulate(longer, engine="loopback", out=tmp_path / "whole")
    simulate(short, engine="loopback", out=tmp_path / "broken")
    close_sessions()  # as in a new process
    simulate(longer, engine="loopback", out=tmp_path / "broken", resume=True)
    assert kept(tmp_path / "broken") == kept(tmp_path / "whole")
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    memories = [
        json.loads((tmp_path / run / "checkpoint" / "checkpoint.json").read_text())["loss_memory"]
        for run in ("whole", "broken")
    ]
    assert memories[0] == memories[1]
    assert bool(memories[0]) == (case.endswith("global"))
    at_home = any("loss-memory" in name for name in kept(tmp_path / "whole"))
    assert at_home == ("local" in case)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["famo, local", "uncertainty, global"])
def test_a_killed_run_goes_on_with_what_loss_weighting_remembers(tmp_path, case):
    settings = [*SETTINGS, *MEMORIES[case]]
    experiment = load_experiment("digits", settings)
    simulate(experiment, engine="loopback", out=tmp_path / "whole")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "broken"), "loopback:1", *settings],
        env=os.environ,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    simulate(experiment, engine="loopback", out=tmp_path / "broken", resume=True)
    assert kept(tmp_path / "broken") == kept(tmp_path / "whole")
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")


REMEMBER = {"fedavgm", "fedadam", "fedyogi", "fedadagrad", "clustered"}
QUICK_STRATEGIES = ("fedadam", "bulyan", "clustered")  # the others: by hand, with -m slow


@pytest.mark.parametrize("engine", ["loopback", "batched"])
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=() if s in QUICK_STRATEGIES else pytest.mark.slow) for s in STRATEGIES],
)
def test_what_a_strategy_remembers_survives_resuming_bit_for_bit(tmp_path, strategy, engine):
    settings = [*SETTINGS, f"federation.strategy={strategy}", "federation.clients-per-round=8"]
    longer = load_experiment("digits", [*settings, "federation.rounds=4"])
    short = load_experiment("digits", [*settings, "federation.rounds=2"])
    simulate(longer, engine=engine, out=tmp_path / "whole")
    simulate(short, engine=engine, out=tmp_path / "broken")
    close_sessions()  # as in a new process
    simulate(longer, engine=engine, out=tmp_path / "broken", resume=True)
    assert kept(tmp_path / "broken") == kept(tmp_path / "whole")
    assert figures(tmp_path / "broken") == figures(tmp_path / "whole")
    memory = [name for name in kept(tmp_path / "whole") if name.startswith("strategy/rule.")]
    assert bool(memory) == (strategy in REMEMBER)


def test_a_killed_run_goes_on_with_what_its_strategy_remembers(tmp_path):
    settings = [*SETTINGS, "federation.strategy=fedadam", "federation.checkpoint-interval-s=0"]
    simulate(load_experiment("digits", settings), engine="loopback", out=tmp_path / "whole")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "broken"), "loopback:1", *settings],
        env=os.environ,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL
    simulate(
        load_experiment("digits", settings), engine="loopback", out=tmp_path / "broken", resume=True
    )
    assert kept(tmp_path / "broken") == kept(tmp_path / "whole")


def test_a_run_that_stopped_early_does_no_more_rounds_when_resumed(tmp_path):
    worse = ["training.lr=1.0", "evaluation.patience=1"]
    experiment = load_experiment("digits", [*SETTINGS, *worse])
    first = simulate(experiment, engine="loopback", out=tmp_path / "run")
    assert first["stopped"].startswith("early")
    again = simulate(experiment, engine="loopback", out=tmp_path / "run", resume=True)
    assert again["rounds"] == first["rounds"]
    assert again["stopped"] == first["stopped"]


def test_a_schedule_that_ends_with_the_rounds_is_not_resumed_with_others(tmp_path):
    settings = ["trunk.widths=[8]", "training.schedule=cosine"]
    short = load_experiment("digits", [*settings, "federation.rounds=2"])
    simulate(short, engine="batched", out=tmp_path / "run")
    more = load_experiment("digits", [*settings, "federation.rounds=4"])
    with pytest.raises(CheckpointError, match="another experiment"):
        simulate(more, engine="batched", out=tmp_path / "run", resume=True)


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path):
    one_round = [*SETTINGS, "federation.rounds=1"]
    simulate(load_experiment("digits", one_round), engine="loopback", out=tmp_path / "run")
    other = load_experiment("digits", [*one_round, "training.lr=0.5"])
    with pytest.raises(CheckpointError, match="another experiment"):
        simulate(other, engine="loopback", out=tmp_path / "run", resume=True)


def test_an_existing_run_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="exists"):
        simulate(load_experiment("digits"), engine="loopback", out=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


CLI = "from simulations.cli import app; app()"


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGKILL), (signal.SIGKILL,) * 2])
def test_a_command_ended_twice_at_some_moment_resumes_to_the_same_end(tmp_path, signals):
    settings = [*SETTINGS, "federation.rounds=40", "federation.checkpoint-interval-s=0"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    simulate(load_experiment("digits", settings), engine="batched", out=whole)
    words = [word for setting in settings for word in ("--set", setting)]
    command = ["digits", "--engine", "batched", *words, "--out", str(broken)]
    for number, sent in enumerate(signals, start=1):
        process = subprocess.Popen(
            [sys.executable, "-c", CLI, "simulate", "-q", *command],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        manifest = broken / "checkpoint" / "checkpoint.json"
        while process.poll() is None and (
            not manifest.exists() or json.loads(manifest.read_text())["round"] < 8 * number
        ):
            time.sleep(0.005)
        os.killpg(process.pid, sent)
        told = process.communicate(timeout=60)[1]
        assert process.returncode in (0, 130, -signal.SIGKILL), told
        command = ["--resume", str(broken)]
    simulate(load_experiment("digits", settings), engine="batched", out=broken, resume=True)
    assert kept(broken) == kept(whole)
    assert figures(broken) == figures(whole)
