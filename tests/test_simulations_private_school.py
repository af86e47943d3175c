"""The School benchmark plans what it says, and prints what it measured."""

from pathlib import Path

import pytest

from simulations.benchmarks import private_school
from simulations.benchmarks.private_school import (
    CONTENDERS,
    OPENLY,
    PRIVATELY,
    THEIRS,
    Job,
    choose,
    grid_points,
    to_markdown,
)

PLANNED = [
    (method, regime, point)
    for method, contender in CONTENDERS.items()
    for regime, grid in contender.grids.items()
    for point in grid_points(grid)
]


@pytest.mark.parametrize(("method", "regime", "point"), PLANNED)
def test_every_run_keeps_to_the_protocol(method, regime, point):
    experiment = Job(regime, method, point, 3, False, Path()).experiment
    level = experiment.privacy.example_level
    assert (level is None) == (regime == OPENLY)
    if level is not None:
        assert (level.epsilon, level.delta, level.max_norm) == (6, 1e-3, 1)
        assert level.noise_multiplier is None
    assert (experiment.federation.rounds, experiment.training.epochs) == (200, 1)
    assert (experiment.data.test, experiment.data.validation) == (0.3, 0)
    assert (experiment.seed, experiment.training.batch_size) == (3, 32)
    if method != "trunk, local heads":  # a linear model that starts at 0
        assert not experiment.trunk.has_layers
        assert experiment.tasks["score"].init == "zero"


def test_settings_are_chosen_by_the_least_error_within_their_regime(monkeypatch, tmp_path):
    asked = []

    def run_all(jobs, workers):
        asked.extend(jobs)
        # The later in a grid the better, but without privacy the other way round.
        sign = {PRIVATELY: -1, OPENLY: 1}
        return {job: sign[job.regime] * place for place, job in enumerate(jobs)}

    monkeypatch.setattr(private_school, "run_all", run_all)
    chosen = choose(tmp_path, 1)
    assert all(job.tunes and job.seed == 0 for job in asked)
    assert THEIRS not in {job.regime for job in asked}  # theirs are given
    for method, contender in CONTENDERS.items():
        points = {regime: list(grid_points(grid)) for regime, grid in contender.grids.items()}
        assert chosen[PRIVATELY, method] == points[PRIVATELY][-1]
        assert chosen[OPENLY, method] == points[OPENLY][0]
    assert chosen[THEIRS, "local"] == "training.lr=0.01"


def test_regimes_stand_side_by_side():
    row = {"mean": 0.025, "deviation": 0.001, "chosen": "training.lr=0.1 a.pull=2"}
    everyone = dict.fromkeys(CONTENDERS, row)
    table = {THEIRS: {"FedAvg": row}, PRIVATELY: everyone, OPENLY: everyone}
    lines = to_markdown(table).splitlines()
    cell = "0.02500 ± 0.00100 | lr 0.1, pull 2"
    assert lines[2] == f"| FedAvg | {cell} | {cell} | {cell} | 0.02564 |"
    assert lines[-1] == f"| trunk, local heads |  |  | {cell} | {cell} |  |"
    assert len({line.count("|") for line in lines}) == 1
