"""Private runs: every engine, partial tasks, resumed; and what leaves a client."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.clients import open_clients
from common.errors import ConfigError
from common.experiment_file import load_experiment
from common.privacy.accounting import Event, epsilon_of
from common.sharing import task_of
from common.strategies import STRATEGIES
from server.federation import initial_trunk
from simulations.baselines import read_clients
from simulations.hostile import Hostile
from simulations.simulate import simulate
from tests.lossy_loopback import simulate_losses
from tests.test_simulations_engines import assert_same_figures, assert_same_trunk, figures
from tests.test_simulations_resume import kept

SETTINGS = [
    "federation.rounds=4",
    "federation.clients-per-round=4",
    "federation.weight-by=uniform",
    "partition.clients=6",
    "trunk.widths=[8]",
]
SKEWED = ["partition.task-skew=rotate", "partition.tasks-per-client=2"]
QUIET = "privacy.client-level.noise-multiplier=0.05"
NOISED = [
    "privacy.sums=noised",
    "privacy.sums-noise-multiplier=0.1",
    "privacy.sums-max-norm=3",
    "tasks.ink.metric=mse",
]
LOCAL = "privacy.client-level.noise=client"
POISSON = ["federation.sampling=poisson", "privacy.client-level.amplification=true"]
CASES = {
    "fixed": [QUIET],
    "clipped by the server": [QUIET, "privacy.client-level.clip=server"],
    "adaptive": [QUIET, "privacy.client-level.quantile=0.5"],
    "local": [QUIET, LOCAL],
    "from a budget, amplified": ["privacy.client-level.epsilon=50", *POISSON],
    "figures with noise": [QUIET, *NOISED],
    "nothing told": [QUIET, "privacy.sums=withheld", "privacy.counts=withheld"],
    "small groups": ["privacy.smallest-group=40"],
    "mr-mtl": [QUIET, "federation.algorithm=mr-mtl"],
    "whole model": [QUIET, "federation.algorithm=whole-model"],
    "whole model, local": [QUIET, "federation.algorithm=whole-model", LOCAL],
    "heads that travel": [QUIET, "federation.heads=per-task", LOCAL],
    "mr-mtl, heads that travel": [
        QUIET,
        "federation.algorithm=mr-mtl",
        "federation.heads=per-task",
    ],
    "adam": [QUIET, "federation.strategy=fedadam", "federation.strategy-options.eta=0.01"],
}


def run(out: Path, case: str, engine: str = "batched", **options: object) -> Path:
    skewed = [] if case.startswith("whole model") else SKEWED
    experiment = load_experiment("digits", [*SETTINGS, *skewed, *CASES[case]])
    simulate(experiment, engine=engine, out=out, **options)
    return out


@pytest.mark.parametrize("case", CASES)
def test_engines_agree(tmp_path, case) -> None:
    runs = [run(tmp_path / engine, case, engine) for engine in ("loopback", "batched")]
    assert_same_trunk(*runs, tolerance=1e-5)
    assert_same_figures(*(figures(path) for path in runs))


def test_what_belongs_to_one_task_moves_by_its_holders_updates_alone(tmp_path) -> None:
    """Clients without the task add nothing: its own columns are the sum over holders, over m."""
    settings = [*SETTINGS, *SKEWED, "trunk.sharing=cgc", "trunk.task-parts=shared"]
    settings += ["federation.rounds=1", "federation.clients-per-round=all"]
    trunks = {}
    for name, more in {
        "private": [
            "privacy.client-level.noise-multiplier=1e-9",
            "privacy.client-level.max-norm=100",
        ],
        "plain": [],
    }.items():
        experiment = load_experiment("digits", [*settings, *more])
        simulate(experiment, engine="loopback", out=tmp_path / name)
        arrays = kept(tmp_path / name)
        trunks[name] = {
            n: np.frombuffer(a, np.float32) for n, a in arrays.items() if n[:6] == "trunk/"
        }
    _, agreement = read_clients(experiment)
    start = {f"trunk/{n}": a.reshape(-1) for n, a in initial_trunk(experiment, agreement).items()}
    own = [name for name in start if task_of(name.removeprefix("trunk/")) == "ink"]
    assert own
    for name in own:
        whole, part = trunks["plain"][name] - start[name], trunks["private"][name] - start[name]
        np.testing.assert_allclose(part * 6, whole * 4, atol=1e-5)  # of six clients, four hold it


@pytest.mark.parametrize("sharing", ["hard", "cgc"])
def test_a_client_without_a_task_adds_nothing_to_its_parts(tmp_path, sharing) -> None:
    """Also where the algorithm keeps a trunk of its own: a secure sum is over holders alone."""
    settings = [*SETTINGS, *SKEWED, "federation.algorithm=mr-mtl", f"trunk.sharing={sharing}"]
    settings += ["federation.clients-per-round=all", "federation.heads=per-task"]
    # Adam would make a whole step of what rounding leaves of a gradient that is 0.
    settings += ["federation.rounds=2", "training.optimiser=sgd", "training.lr=0.05"]
    settings += ["trunk.task-parts=shared"] * (sharing == "cgc")
    secure = ["privacy.secure-aggregation.bits=24", "privacy.secure-aggregation.max-norm=50"]
    for name, more in {"plain": [], "secure": secure}.items():
        experiment = load_experiment("digits", [*settings, *more])
        simulate(experiment, engine="loopback", out=tmp_path / name)
    assert_same_trunk(tmp_path / "plain", tmp_path / "secure", tolerance=2e-4)


@pytest.mark.parametrize("case", ["adaptive", "local", "from a budget, amplified", "adam"])
@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_run_that_stopped_goes_on_with_the_same_noise_and_norm(tmp_path, case, engine) -> None:
    whole = run(tmp_path / "whole", case, engine)

    class Stop(Exception):
        pass

    def stop(line: dict) -> None:
        if line["round"] == 2:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "broken", case, engine, listener=stop)
    broken = run(tmp_path / "broken", case, engine, resume=True)
    assert kept(broken) == kept(whole)
    assert figures(broken) == figures(whole)


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if STRATEGIES[s].by_mean])
def test_every_strategy_by_mean_steps_from_the_private_mean(tmp_path, strategy) -> None:
    settings = [*SETTINGS, f"federation.strategy={strategy}"]
    quiet = load_experiment(
        "digits",
        [
            *settings,
            "privacy.client-level.noise-multiplier=1e-9",
            "privacy.client-level.max-norm=100",
        ],
    )
    plain = load_experiment("digits", settings)
    simulate(quiet, engine="batched", out=tmp_path / "quiet")
    simulate(plain, engine="batched", out=tmp_path / "plain")
    # What does not clip and hardly blurs is the plain mean.
    assert_same_trunk(tmp_path / "quiet", tmp_path / "plain", tolerance=2e-2)


def test_a_round_that_drew_nobody_is_a_round_with_noise(tmp_path) -> None:
    settings = [*SETTINGS, "federation.clients-per-round=1", "federation.rounds=8", *POISSON, QUIET]
    simulate(load_experiment("digits", settings), engine="batched", out=tmp_path / "run")
    lines = figures(tmp_path / "run")
    idle = [line for line in lines if not line["clients"]["asked"]]
    assert idle
    assert all(line["skipped"] is None for line in idle)


@pytest.mark.parametrize("engine", ["loopback", "batched"])
def test_a_round_whose_replies_are_all_useless_is_a_round_with_noise(tmp_path, engine) -> None:
    """That the trunk stood still would tell that nobody was left, whatever the noise."""
    settings = load_experiment("digits", [*SETTINGS, "federation.rounds=2", QUIET])
    names = frozenset(open_clients(settings).names)
    simulate(settings, engine=engine, out=tmp_path, hostile=Hostile("nan", names, 1.0))
    lines = figures(tmp_path)
    assert [line["clients"]["answered"] for line in lines] == [0, 0]
    assert [line["skipped"] for line in lines] == [None, None]
    _, agreement = read_clients(settings)
    arrays = kept(tmp_path)
    for name, start in initial_trunk(settings, agreement).items():
        moved = np.frombuffer(arrays[f"trunk/{name}"], np.float32) - start.reshape(-1)
        assert 0 < np.abs(moved).max() < 0.2  # z C / m is 0.0125


def test_a_round_that_no_client_answers_is_one_too(tmp_path) -> None:
    settings = load_experiment("digits", [*SETTINGS, "federation.rounds=2", QUIET])
    lost = {(1, name): "after" for name in open_clients(settings).names}
    simulate_losses(settings, tmp_path, lost)
    assert [line["skipped"] for line in figures(tmp_path)] == [None, None]


def test_a_round_is_not_repeated_beyond_the_budget(tmp_path) -> None:
    settings = load_experiment(
        "digits",
        [
            *SETTINGS,
            "federation.clients-per-round=all",
            "federation.least-replies=1",
            "federation.too-few=repeat",
            "federation.most-repeats=5",
            "privacy.client-level.noise=client",
            "privacy.client-level.noise-multiplier=2",
            f"privacy.client-level.epsilon={epsilon_of([Event(2.0, 1.0, 3)], 1e-5)}",
        ],
    )
    lost = {(2, name): "after" for name in open_clients(settings).names}
    simulate_losses(settings, tmp_path, lost)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["privacy"]["client"]["epsilon"] <= settings.privacy.client_level.epsilon
    assert results["stopped"].startswith("budget")
    assert len(figures(tmp_path)[1]["lost-attempts"]) == 1


def test_a_budget_that_no_simulation_would_keep_is_refused(tmp_path) -> None:
    rows = [f"privacy.example-level.{given}" for given in ("epsilon=1", "noise-multiplier=0.5")]
    settings = [*SETTINGS, QUIET, "privacy.sums=withheld", "privacy.counts=withheld", *rows]
    settings += ["privacy.example-level.delta=1e-3"]
    with pytest.raises(ConfigError, match=r"epsilon must be left out of a simulation"):
        simulate(load_experiment("digits", settings), engine="batched", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_withheld_counts_stay_at_home(tmp_path) -> None:
    out = run(tmp_path / "run", "nothing told", "loopback")
    results = json.loads((out / "results.json").read_text())
    assert all(own == {"examples": {}, "tasks": {}} for own in results["clients"].values())
    assert results["final"]["test"] == {}


def test_the_trunks_noise_is_that_of_the_mean(tmp_path) -> None:
    """Two noise multipliers, one seed: rounds differ by the noise alone, in the stated size."""
    trunks = {}
    for multiplier in (1e-6, 1.0):
        settings = [
            *SETTINGS,
            "federation.rounds=1",
            "trunk.widths=[64]",
            f"privacy.client-level.noise-multiplier={multiplier}",
        ]
        out = tmp_path / str(multiplier)
        simulate(load_experiment("digits", settings), engine="batched", out=out)
        arrays = kept(out)
        trunks[multiplier] = np.concatenate(
            [np.frombuffer(a, np.float32) for n, a in sorted(arrays.items()) if n[:6] == "trunk/"]
        )
    noise = trunks[1.0] - trunks[1e-6]
    assert np.sqrt((noise**2).mean()) == pytest.approx(1 / 4, rel=0.05)
