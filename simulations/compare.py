"""Does federating help? The same splits and seeds, trained in every way, side by side."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.algorithms import ALGORITHMS
from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.json_gaps import without_gaps
from server.checkpoint import replace_text, told_where
from server.run_folder import command_line
from simulations.baselines import BASELINES, make_trainer, read_clients
from simulations.contenders import train_baseline, train_federation
from simulations.gains import YARDSTICK, TaskFigures, summarise
from simulations.holdout import Holdout, check_holdout, divide
from simulations.holdout_figures import Newcomers, describe_newcomers, describe_seed, fit_newcomers
from simulations.jobs import run_jobs
from simulations.tracked_run import UNTRACKED, Track

FIGURES = "comparison.json"
FEDERATED, WHOLE_MODEL = "federated trunk, local heads", "whole-model FedAvg"
ORDER = (YARDSTICK, "multi-task local", FEDERATED, WHOLE_MODEL, "centralised")
WHOLE = "whole-model"


@dataclass(frozen=True)
class SeedFigures:
    """What came of one seed.

    Attributes:
        contenders: contender -> task -> metric on test rows.
        newcomers: of the federated trunk, where clients were held out.
    """

    contenders: dict[str, TaskFigures]
    newcomers: Newcomers | None = None


def compare(
    experiment: Experiment,
    seeds: Sequence[int],
    out: Path,
    jobs: int = 1,
    holdout: Holdout | None = None,
    track: Track = UNTRACKED,
) -> dict[str, Any]:
    """Train every contender for every seed and summarise the test figures.

    A seed decides splits, partition and initial parameters, for all contenders alike. Each is read
    at its best round by ``evaluation.best-by`` (a federation whose evaluations do not cover all
    clients: at its last round). A seed's figures are in ``out/seed-N/comparison.json`` as soon as
    it is done, the whole in ``out/comparison.json``.

    Args:
        experiment: the resolved experiment; its own seed is not used.
        seeds: one whole comparison each.
        out: folder for the figures and the federations' run folders; must not exist.
        jobs: seeds compared at a time, in processes of their own.
        holdout: clients that take no part in any contender, and are personalised afterwards.
        track: who is told of every federation; the other contenders have no rounds to tell of.

    Returns:
        What `describe_comparison` says, with ``contenders``: ``{name: {"tasks": {task: spread},
        "delta-m": spread}}`` and a spread ``{"mean", "deviation", "seeds"}``: the sample standard
        deviation (0 for one seed) and each seed's value; Delta-m is in percent. One that has run
        folders names them: ``out/seed-N/<folder>``. With `holdout` there is ``newcomers``:
        ``{"contenders": {name: what it is}, "trunks": {contender: summary}}``; see
        `simulations.holdout_figures.summarise_newcomers`.

    Raises:
        FedMTLError: the settings or the data cannot be used, or `out` exists.
    """
    require_test_rows(experiment)
    require_rows_in_memory(experiment)
    require_new_folder(out)
    check_holdout(experiment, holdout, seeds)
    done: dict[int, SeedFigures] = {}
    run_jobs(
        _compare_seed,
        [(with_seed(experiment, seed), seed_folder(out, seed), holdout, track) for seed in seeds],
        jobs,
        lambda job, figures: done.update({job[0].seed: figures}),
    )
    algorithms = run_algorithms(experiment)
    rows = {seed: done[seed].contenders for seed in seeds}
    yardsticks = [rows[seed][YARDSTICK] for seed in seeds]
    contenders = {
        name: {
            **({"folder": algorithms[name]} if name in algorithms else {}),
            **summarise(experiment, [rows[seed][name] for seed in seeds], yardsticks),
        }
        for name in ORDER
        if all(name in row for row in rows.values())
    }
    newcomers = {seed: own for seed in seeds if (own := done[seed].newcomers)}
    comparison = {
        **describe_comparison(experiment, seeds),
        "algorithm": algorithms[FEDERATED],
        "contenders": contenders,
        **describe_newcomers({FEDERATED: newcomers}, experiment),
    }
    write_figures(out / FIGURES, comparison)
    return comparison


def compare_once(
    experiment: Experiment,
    out: Path,
    holdout: Holdout | None = None,
    track: Track = UNTRACKED,
) -> SeedFigures:
    """Train every contender for one seed, then personalise the clients that were held out."""
    experiment, held_out = divide(experiment, holdout)
    clients, agreement = read_clients(experiment)
    figures = {name: train_baseline(name, experiment, agreement, clients) for name in BASELINES}
    algorithms = run_algorithms(experiment)
    runs = {name: with_algorithm(experiment, algorithm) for name, algorithm in algorithms.items()}
    possible = {
        FEDERATED: bool(make_trainer(runs[FEDERATED], agreement).shared),
        WHOLE_MODEL: all(set(data.tasks) == set(experiment.tasks) for data in clients),
    }
    for name, run in runs.items():
        if possible[name]:
            figures[name] = train_federation(run, "loopback", out / algorithms[name], track)
    newcomers = None
    if holdout is not None:
        newcomers = fit_newcomers(runs[FEDERATED], out / algorithms[FEDERATED], held_out, holdout)
    write_figures(out / FIGURES, {**figures, **describe_seed(newcomers)})
    return SeedFigures(figures, newcomers)


def run_algorithms(experiment: Experiment) -> dict[str, str]:
    """Say which algorithm each federation of a comparison runs; it names the run folder.

    The federated trunk is trained by the experiment's own algorithm where that shares one.
    """
    own = experiment.federation.algorithm
    return {FEDERATED: own if ALGORITHMS[own].shares == "trunk" else "joint", WHOLE_MODEL: WHOLE}


def with_algorithm(experiment: Experiment, algorithm: str) -> Experiment:
    """Give an experiment another algorithm; its own stays as it is."""
    federation, trunk = experiment.federation, experiment.trunk
    if algorithm == federation.algorithm:
        return experiment
    update: dict[str, Any] = {"algorithm": algorithm, "algorithm_options": {}, "heads": "local"}
    if algorithm == WHOLE:  # shares everything, and takes no other word for it
        trunk = trunk.model_copy(update={"task_parts": None})
    federation = federation.model_copy(update=update)
    return experiment.model_copy(update={"federation": federation, "trunk": trunk})


def describe_comparison(experiment: Experiment, seeds: Sequence[int]) -> dict[str, Any]:
    """Say what was compared: experiment, fingerprint, seeds, each task's metric, the command."""
    return {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "command": command_line(),
        "seeds": list(seeds),
        "metrics": {name: task.metric_name for name, task in experiment.tasks.items()},
        "private": any(experiment.privacy.levels),
    }


def require_test_rows(experiment: Experiment) -> None:
    """Refuse to compare without test rows.

    Raises:
        ConfigError: the experiment keeps none.
    """
    if not experiment.data.test and experiment.data.split != "column":
        raise ConfigError(
            "data.test must be above 0 for a comparison, which is made on test rows, got 0; set "
            "it, as in data.test=0.2"
        )


def require_rows_in_memory(experiment: Experiment) -> None:
    """Refuse to compare where rows stay on the disk.

    Raises:
        ConfigError: they do.
    """
    if experiment.data.memory != "ram":
        raise ConfigError(
            "data.memory must be 'ram' for a comparison, whose single-task and centralised "
            f"contenders copy rows, got '{experiment.data.memory}'; set it, or simulate the "
            "federations one by one"
        )


def require_new_folder(out: Path) -> None:
    """Refuse to write among the files of another comparison.

    Raises:
        CheckpointError: the folder is not empty, or is a file.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise CheckpointError(f"folder {out} exists and is not empty; choose another --out")


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """Give an experiment another seed."""
    return experiment.model_copy(update={"seed": seed})


def seed_folder(out: Path, seed: int) -> Path:
    """Name the folder of one seed's runs and figures."""
    return out / f"seed-{seed}"


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON; one that does not exist is null.

    Raises:
        CheckpointError: they cannot be written.
    """
    with told_where(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(without_gaps(figures), indent=1, allow_nan=False))


def _compare_seed(job: tuple[Experiment, Path, Holdout | None, Track]) -> SeedFigures:
    return compare_once(*job)
