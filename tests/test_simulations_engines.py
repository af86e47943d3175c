"""The engines agree: one experiment and seed give one trunk."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from common.errors import ConfigError, NothingLearnedError
from common.experiment_file import load_experiment
from simulations.flower_engine import StoppedError, stop_at_pull
from simulations.loopback import LoopbackGrid
from simulations.simulate import choose_engine, simulate

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "federation.rounds=3",
    "federation.clients-per-round=3",
    "partition.clients=5",
    "trunk.widths=[16]",
    "trunk.dropout=0.1",
]


def trunk(run: Path) -> dict[str, np.ndarray]:
    (file,) = (run / "checkpoint").glob("trunk-*.safetensors")
    return load_file(file)


def assert_same_trunk(left: Path, right: Path, tolerance: float = 1e-6) -> None:
    ours, theirs = trunk(left), trunk(right)
    assert set(ours) == set(theirs)
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], rtol=tolerance, atol=tolerance)


def figures(run: Path) -> list[dict]:
    """Each round's line without its times."""
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_s")} for line in lines]


def assert_same_figures(left: object, right: object) -> None:
    """Compare nested figures: numbers to 1e-4, the rest exactly."""
    if isinstance(left, dict):
        assert isinstance(right, dict)
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert_same_figures(value, right[key])
    elif isinstance(left, list):
        assert isinstance(right, list)
        for one, other in zip(left, right, strict=True):
            assert_same_figures(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-5, nan_ok=True)
    else:
        assert left == right


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        simulate(
            load_experiment("digits", SETTINGS, seed=seed), engine="loopback", out=tmp_path / name
        )
    first, again, other = (trunk(tmp_path / name) for name in "abc")
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_a_federation_of_one_client_is_local_training(tmp_path):
    from simulations.baselines import make_trainer, read_clients

    experiment = load_experiment(
        "digits", ["partition.clients=1", "federation.rounds=2", "trunk.widths=[8]"]
    )
    simulate(experiment, engine="loopback", out=tmp_path / "run")
    (data,), agreement = read_clients(experiment)
    trainer = make_trainer(experiment, agreement)
    trainer.load({}, {})
    for number in (1, 2):
        trainer.train(data, experiment.task_weights(), number)
    for name, values in trunk(tmp_path / "run").items():
        np.testing.assert_array_equal(values, trainer.flat.read([name])[name])


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_bit(tmp_path, workers):
    experiment = load_experiment("digits", SETTINGS)
    simulate(experiment, engine="loopback", out=tmp_path / "one")
    simulate(experiment, engine="loopback", workers=workers, out=tmp_path / "many")
    assert figures(tmp_path / "one") == figures(tmp_path / "many")
    alone, together = trunk(tmp_path / "one"), trunk(tmp_path / "many")
    assert all((alone[name] == together[name]).all() for name in alone)
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("one", "many")]
    assert results[0]["clients"] == results[1]["clients"]


CASES = {
    "plain": [],
    "ragged": ["partition.kind=dirichlet", "partition.by=digit", "partition.alpha=0.5"],
    "one task a client": [
        "partition.task-skew=rotate",
        "partition.tasks-per-client=1",
        "federation.clients-per-round=1",
    ],
    "uneven tasks": ["partition.task-skew=rotate", "partition.tasks-per-client=2"],
    "evaluated by message": ["evaluation.by=message", "evaluation.every=2"],
    "personal": ["evaluation.model=personal"],
    "whole model": ["federation.algorithm=whole-model"],
    "sgd, layer norm": ["training.optimiser=sgd", "training.lr=0.1", "trunk.norm=layer"],
    "batch norm at home": ["trunk.norm=batch", "trunk.norm-parameters=local"],
    "batch norm, statistics at home": [
        "trunk.norm=batch",
        "trunk.norm-parameters=local-statistics",
        "evaluation.by=message",
    ],
    "hidden heads": ["tasks.digit.hidden=[8]"],
    "head dropout, rates of their own": [
        "partition.kind=dirichlet",
        "partition.by=digit",
        "tasks.digit.dropout=0.3",
        "tasks.ink.dropout=0.1",
        "tasks.parity.l1=0.01",
        "trunk.weight-decay=0.01",
    ],
    "uniform": ["federation.weight-by=uniform"],
    "scheduled and clipped": [
        "partition.kind=dirichlet",
        "partition.by=digit",
        "training.schedule=cosine",
        "training.step-schedule=one-cycle",
        "training.clip-norm=0.5",
        "training.epochs=2",
    ],
    "scheduled by rounds": ["training.optimiser=sgd", "training.schedule=warm-up"],
}


@pytest.mark.parametrize("case", CASES)
def test_batched_equals_loopback(tmp_path, case):
    experiment = load_experiment("digits", [*SETTINGS, *CASES[case]])
    for engine in ("loopback", "batched"):
        simulate(experiment, engine=engine, out=tmp_path / engine)
    assert_same_trunk(tmp_path / "loopback", tmp_path / "batched", tolerance=1e-5)
    assert_same_figures(figures(tmp_path / "loopback"), figures(tmp_path / "batched"))
    results = [
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("loopback", "batched")
    ]
    for result in results:
        del result["seconds"]
    assert_same_figures(*results)


def test_batched_in_small_chunks_is_the_same(tmp_path, monkeypatch):
    experiment = load_experiment("digits", SETTINGS)
    simulate(experiment, engine="batched", out=tmp_path / "whole")
    monkeypatch.setattr("simulations.residents.CHUNK_BYTES", 1)  # one client at a time
    monkeypatch.setattr("client.cohort.STRETCH", 1)  # one batch at a time
    monkeypatch.setattr("client.cohort_evaluation.AT_ONCE", 1)  # one row
    simulate(experiment, engine="batched", out=tmp_path / "chunks")
    assert_same_trunk(tmp_path / "whole", tmp_path / "chunks")
    assert_same_figures(figures(tmp_path / "whole"), figures(tmp_path / "chunks"))


def test_clients_that_diverge_are_left_out_alike(tmp_path):
    settings = ["training.optimiser=sgd", "training.lr=30", "trunk.activation=none"]
    experiment = load_experiment("digits", [*SETTINGS, *settings])
    left_out = {}
    for engine in ("loopback", "batched"):
        lines: list[dict] = []
        with suppress(NothingLearnedError):
            simulate(experiment, engine=engine, out=tmp_path / engine, listener=lines.append)
        left_out[engine] = [sorted(line["clients"]["left-out"]) for line in lines]
    assert left_out["batched"] == left_out["loopback"]
    assert any(left_out["batched"])


@pytest.mark.parametrize(
    "setting", ["trunk.architecture=cnn", "tasks.digit.classes=300", "training.optimiser=nadam"]
)
def test_batched_refuses_a_model_that_it_has_no_form_of(tmp_path, setting):
    experiment = load_experiment("digits", [*SETTINGS, setting])
    with pytest.raises(ConfigError, match="use --engine loopback"):
        simulate(experiment, engine="batched", out=tmp_path / "run")
    assert choose_engine(experiment)[0] == "loopback"


@pytest.mark.slow
def test_an_optimiser_of_torch_trains_by_autograd_on_any_number_of_workers(tmp_path):
    experiment = load_experiment("digits", [*SETTINGS, "training.optimiser=rmsprop"])
    assert choose_engine(experiment)[0] == "loopback"
    for workers in (1, 2):
        out = tmp_path / str(workers)
        simulate(experiment, engine="loopback", workers=workers, out=out)
    one, two = trunk(tmp_path / "1"), trunk(tmp_path / "2")
    assert all((one[name] == two[name]).all() for name in one)
    losses = [line["train"]["loss"] for line in figures(tmp_path / "1")]
    assert losses[-1] < losses[0]


def test_whoever_asks_for_workers_gets_the_engine_that_has_them():
    assert choose_engine(load_experiment("digits"), workers=1)[0] == "batched"
    assert choose_engine(load_experiment("digits"), workers=2)[0] == "loopback"


PRIVATE = [
    "federation.weight-by=uniform",
    "privacy.client-level.noise-multiplier=0.1",
    "privacy.client-level.quantile=0.5",
]

SECURE = [
    "federation.weight-by=uniform",
    "privacy.client-level.noise=shares",
    "privacy.client-level.noise-multiplier=0.1",
    "privacy.secure-aggregation.bits=20",
]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], PRIVATE, SECURE], ids=["plain", "private", "secure"])
def test_flowers_simulation_runtime_gives_the_trunk_of_loopback_and_resumes(tmp_path, more):
    """In a process of its own: Ray and the runtime leave threads behind."""
    script = (
        "import sys; from pathlib import Path\n"
        "from common.experiment_file import load_experiment\n"
        "from simulations.simulate import simulate\n"
        "simulate(load_experiment('digits', sys.argv[3:]), engine='flower',"
        " out=Path(sys.argv[1]), resume=sys.argv[2] == 'resume')\n"
    )
    whole = [*SETTINGS, *more]
    simulate(load_experiment("digits", whole), engine="loopback", out=tmp_path / "loopback")
    two_rounds = [*whole, "federation.rounds=2"]
    for how, settings in {"new": two_rounds, "resume": whole}.items():
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "flower"), how, *settings],
            cwd=ROOT,
            check=True,
            timeout=240,
        )
    assert_same_trunk(tmp_path / "loopback", tmp_path / "flower")


@pytest.mark.slow
def test_flwr_run_works_as_flower_users_expect(tmp_path):
    overrides = " ".join(SETTINGS)
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path / "flower-home"),
        "FEDMTL_RUNS": str(tmp_path / "runs"),
        "FLWR_TELEMETRY_ENABLED": "0",
        # Use this environment instead of building a fresh one for the run.
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }
    flwr = shutil.which("flwr", path=str(Path(sys.executable).parent))
    assert flwr is not None
    command = [flwr, "run", ".", "--stream"]
    command += ["-c", f'experiment="digits" set="{overrides}"']
    command += ["--federation-config", "num-supernodes=5"]
    try:
        process = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=280, capture_output=True, text=True
        )
    finally:
        # The SuperLink that `flwr run` starts stays behind; it is the one with our home folder.
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if str(tmp_path).encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), 15)
            except (OSError, ValueError):
                continue
    (run,) = (tmp_path / "runs").iterdir() if (tmp_path / "runs").exists() else (None,)
    assert run is not None, process.stdout + process.stderr
    simulate(load_experiment("digits", SETTINGS), engine="loopback", out=tmp_path / "loopback")
    assert_same_trunk(tmp_path / "loopback", run)


def test_a_stopped_grid_ends_the_wait_for_replies_that_will_not_come():
    grid = LoopbackGrid(ClientApp(), ["a"])
    stopped = Event()
    stop_at_pull(grid, stopped)
    assert list(grid.pull_messages([])) == []
    stopped.set()
    with pytest.raises(StoppedError):
        grid.pull_messages([])
