"""Does federating help? The same splits and seeds, trained in every way, side by side."""

import json
import logging
import math
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import CheckpointError, ConfigError, NothingLearnedError
from common.experiment import Experiment
from common.json_gaps import without_gaps
from common.metrics import METRICS
from server.checkpoint import replace_text, told_where
from server.figures import split_figures
from server.sums import SumTable
from simulations.baselines import BASELINES, make_trainer, read_clients
from simulations.simulate import simulate

logger = logging.getLogger("fedmtl.compare")
FIGURES = "comparison.json"
YARDSTICK = "single-task local"  # what Delta-m is relative to
FEDERATED, WHOLE_MODEL = "federated trunk, local heads", "whole-model FedAvg"
ORDER = (YARDSTICK, "multi-task local", FEDERATED, WHOLE_MODEL, "centralised")

TaskFigures = dict[str, float]  # task -> its metric on test rows


def compare(
    experiment: Experiment, seeds: Sequence[int], out: Path, jobs: int = 1
) -> dict[str, Any]:
    """Train every contender for every seed and summarise the test figures.

    A seed decides splits, partition and initial parameters, for all contenders alike. Each is read
    at its round of lowest validation loss (a federation whose evaluations do not cover all clients:
    at its last round). A seed's figures are in ``out/seed-N/comparison.json`` as soon as it is
    done, the whole in ``out/comparison.json``.

    Args:
        experiment: the resolved experiment; its own seed is not used.
        seeds: one whole comparison each.
        out: folder for the figures and the federations' run folders; must not exist.
        jobs: seeds compared at a time, in processes of their own.

    Returns:
        ``{"experiment", "fingerprint", "seeds", "metrics", "contenders": {name: {"tasks": {task:
        spread}, "delta-m": spread}}}`` with a spread ``{"mean", "deviation", "seeds"}``: the sample
        standard deviation (0 for one seed) and each seed's value; Delta-m is in percent.

    Raises:
        FedMTLError: the settings or the data cannot be used, or `out` exists.
    """
    if not experiment.data.test and experiment.data.split != "column":
        raise ConfigError(
            "data.test must be above 0 for a comparison, which is made on test rows, got 0; set "
            "it, as in data.test=0.2"
        )
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise CheckpointError(f"folder {out} exists and is not empty; choose another --out")
    arguments = [(experiment.model_copy(update={"seed": s}), out / f"seed-{s}") for s in seeds]
    if jobs > 1 and len(seeds) > 1:
        rows = _compare_side_by_side(arguments, min(jobs, len(seeds)))
    else:
        rows = [compare_once(*pair) for pair in arguments]
    comparison = {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "seeds": list(seeds),
        "metrics": {name: task.metric_name for name, task in experiment.tasks.items()},
        "contenders": {
            name: _summary(
                experiment, [row[name] for row in rows], [row[YARDSTICK] for row in rows]
            )
            for name in ORDER
            if all(name in row for row in rows)
        },
    }
    write_figures(out / FIGURES, comparison)
    return comparison


def _compare_side_by_side(
    arguments: Sequence[tuple[Experiment, Path]], jobs: int
) -> list[dict[str, TaskFigures]]:
    """Compare seeds in processes of their own; Ctrl-C is this process's to handle."""
    others = set(active_children())
    with ProcessPoolExecutor(
        jobs,
        get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        try:
            return list(pool.map(compare_once, *zip(*arguments, strict=True)))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON; one that does not exist is null.

    Raises:
        CheckpointError: they cannot be written.
    """
    with told_where(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(without_gaps(figures), indent=1, allow_nan=False))


def compare_once(experiment: Experiment, out: Path) -> dict[str, TaskFigures]:
    """Train every contender for one seed: contender -> task -> metric on test rows."""
    clients, agreement = read_clients(experiment)
    figures: dict[str, TaskFigures] = {}
    for name, train in BASELINES.items():
        sums = train(experiment, agreement, clients)
        figures[name] = _metrics(
            experiment,
            split_figures(experiment, SumTable.of(sums), "test", experiment.task_weights()),
        )
    joint = _with_algorithm(experiment, "joint")
    if make_trainer(joint, agreement).shared:
        figures[FEDERATED] = _federate(experiment, "joint", out)
    if all(set(data.tasks) == set(experiment.tasks) for data in clients):
        figures[WHOLE_MODEL] = _federate(experiment, "whole-model", out)
    write_figures(out / FIGURES, figures)
    return figures


def _with_algorithm(experiment: Experiment, algorithm: str) -> Experiment:
    federation = experiment.federation.model_copy(update={"algorithm": algorithm})
    trunk = experiment.trunk
    if algorithm == "whole-model":  # shares everything, and takes no other word for it
        trunk = trunk.model_copy(update={"task_parts": None})
    return experiment.model_copy(update={"federation": federation, "trunk": trunk})


def _federate(experiment: Experiment, algorithm: str, out: Path) -> TaskFigures:
    run = _with_algorithm(experiment, algorithm)
    try:
        results = simulate(run, engine="loopback", out=out / algorithm)
    except NothingLearnedError as error:  # a contender that diverged does not end the comparison
        logger.warning("%s, seed %d: %s", algorithm, experiment.seed, error)
        return _metrics(experiment, (error.best or {}).get("test") or {})
    return _metrics(experiment, (results["best"] or results["final"])["test"] or {})


def _metrics(experiment: Experiment, figures: dict[str, Any]) -> TaskFigures:
    tasks = figures.get("tasks", {})
    return {
        name: tasks[name][task.metric_name] if name in tasks else math.nan
        for name, task in experiment.tasks.items()
    }


def delta_m(experiment: Experiment, figures: TaskFigures, yardstick: TaskFigures) -> float:
    """Average the relative gain per task over single-task training, in percent.

    ``Delta_m = 100 / T * sum_t (-1)^{l_t} (M_t - S_t) / |S_t|`` with ``l_t = 1`` where lower is
    better (Maninis et al., "Attentive single-tasking of multiple tasks", CVPR 2019, eq. 4). Shaky
    where a yardstick S_t is near 0, as an R2 may be.
    """
    gains = []
    for name, task in experiment.tasks.items():
        sign = 1 if METRICS[task.metric_name].higher_is_better else -1
        base = yardstick[name]
        gains.append(sign * (figures[name] - base) / abs(base) if base else math.nan)
    return 100 * sum(gains) / len(gains)


def _summary(
    experiment: Experiment, rows: Sequence[TaskFigures], yardsticks: Sequence[TaskFigures]
) -> dict[str, Any]:
    gains = [delta_m(experiment, r, y) for r, y in zip(rows, yardsticks, strict=True)]
    return {
        "tasks": {task: _spread([row[task] for row in rows]) for task in experiment.tasks},
        "delta-m": _spread(gains),
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    # NumPy's lets a NaN through: a contender that diverged under one seed has no mean.
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "deviation": deviation, "seeds": list(values)}
