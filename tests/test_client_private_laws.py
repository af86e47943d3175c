"""What holds for every algorithm under example-level privacy: it runs so, or says why it cannot."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from client.row_privacy import RowPrivacy
from common.algorithms import ALGORITHMS
from common.errors import DataError
from common.experiment_file import dump_experiment
from common.privacy.example_level import steps_per_round
from simulations.simulate import simulate
from tests.algorithm_runs import (
    CLIENTS,
    Run,
    assert_close,
    assert_equal,
    assert_same_figures,
    plan,
    run,
    stop_after,
    write_clients,
)

REFUSED = {"fedala": "mixing weights are learned without noise"}
COVERS = {"fedbabu": "trunk"}
LEVEL = {"noise-multiplier": 1.0, "max-norm": 0.5, "delta": 1e-3}
SAMPLED = {"clients-per-round": 2}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of four clients; one lacks a task."""
    root = tmp_path_factory.mktemp("rows")
    folders = {lacking: write_clients(root / f"not-{lacking}", lacking) for lacking in ("", "d")}
    return lambda algorithm: folders["" if ALGORITHMS[algorithm].shares == "all" else "d"]


@pytest.fixture
def planned(rows):
    def make(algorithm, **tables):
        level = {**LEVEL, "covers": COVERS.get(algorithm, "model")}
        return plan(rows(algorithm), algorithm, privacy={"example-level": level}, **tables)

    return make


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_runs_privately_or_says_why_not(planned, tmp_path, monkeypatch, algorithm):
    if algorithm in REFUSED:
        with pytest.raises(ValidationError, match=REFUSED[algorithm]):
            planned(algorithm)
        return
    experiment, noisy = planned(algorithm), []
    draw = RowPrivacy.draw_noise

    def counted(self, clients, width):
        noisy.append(clients)
        return draw(self, clients, width)

    monkeypatch.setattr(RowPrivacy, "draw_noise", counted)
    ran = run(experiment, tmp_path / "run", "batched")
    told = ran.results["clients"]
    assert set(told) == set(CLIENTS)
    expected = sum(
        steps_per_round(experiment, client["examples"]["train"]) for client in told.values()
    )
    assert sum(noisy) == 3 * expected  # what is counted is what is done: no step is free


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in REFUSED])
@pytest.mark.parametrize("tables", [{}, {"trunk": {"dropout": 0.3, "norm": "layer"}}])
def test_engines_agree(planned, tmp_path, algorithm, tables):
    experiment = planned(algorithm, federation=SAMPLED, **tables)
    loopback = run(experiment, tmp_path / "loopback")
    assert_close(loopback, run(experiment, tmp_path / "batched", "batched"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["joint", "fedbabu"])
def test_flowers_simulation_runtime_gives_what_loopback_gives(planned, tmp_path, algorithm):
    experiment = planned(algorithm, federation={"rounds": 2})
    loopback = run(experiment, tmp_path / "loopback")
    written = tmp_path / "experiment.toml"
    written.write_text(dump_experiment(experiment), encoding="utf-8")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from common.experiment_file import load_experiment\n"
        "from simulations.simulate import simulate\n"
        "simulate(load_experiment(sys.argv[1]), engine='flower', out=Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(written), str(tmp_path / "flower")],
        check=True,
        timeout=280,
        cwd=Path(__file__).parent.parent,
    )
    found = Run(tmp_path / "flower")
    assert loopback.trunk.keys() == found.trunk.keys()
    for name, values in loopback.trunk.items():
        np.testing.assert_allclose(found.trunk[name], values, rtol=1e-6, atol=1e-6)
    assert_same_figures(loopback.results, found.results)


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in REFUSED])
@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_resumed_run_is_the_run_that_never_stopped(planned, tmp_path, algorithm, engine):
    experiment = planned(algorithm, federation=SAMPLED)
    whole = run(experiment, tmp_path / "whole", engine)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "broken", engine, listener=stop_after(1))
    assert_equal(whole, run(experiment, tmp_path / "broken", engine, resume=True))


def test_another_seed_is_another_noise(planned, tmp_path):
    first, other = (
        run(planned("joint").model_copy(update={"seed": seed}), tmp_path / str(seed)).trunk
        for seed in (0, 1)
    )
    assert any((first[name] != other[name]).any() for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["mmoe", "cross-stitch", "soft"])
def test_models_without_a_stacked_form_run_privately(planned, tmp_path, sharing):
    experiment = planned("joint", trunk={"sharing": sharing})
    whole = run(experiment, tmp_path / "whole")
    assert all(np.isfinite(array).all() for array in whole.trunk.values())
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "broken", listener=stop_after(1))
    assert_equal(whole, run(experiment, tmp_path / "broken", resume=True))


def test_heads_that_noise_does_not_cover_are_fitted_without(planned, tmp_path, monkeypatch):
    experiment, widths = planned("fedbabu"), set()
    draw = RowPrivacy.draw_noise

    def noted(self, clients, width):
        widths.add(width)
        return draw(self, clients, width)

    monkeypatch.setattr(RowPrivacy, "draw_noise", noted)
    ran = run(experiment, tmp_path / "run")
    assert widths == {sum(array.size for array in ran.trunk.values())}  # the trunk, nothing else
    heads = {
        name: {k: v for k, v in own.arrays.items() if k.startswith("heads.")}
        for name, own in ran.clients.items()
    }
    first, *others = (own["heads.task-size.0.weight"] for own in heads.values())
    assert all((first != other).any() for other in others)  # each has fitted its own


def test_a_client_with_too_many_rows_for_delta_is_told_before_training(rows, tmp_path):
    level = {**LEVEL, "delta": 0.04}
    experiment = plan(rows("joint"), "joint", privacy={"example-level": level})
    told = r"client 'a': .*delta must be below 1/26, .*got 0.04"
    for engine in ("loopback", "batched"):
        with pytest.raises(DataError, match=told):
            simulate(experiment, engine=engine, out=tmp_path / engine)
