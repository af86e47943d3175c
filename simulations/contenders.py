"""Train one contender of a comparison for one seed, and read its test figures."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.agreement import Agreement
from common.dataset import ClientData
from common.errors import NothingLearnedError
from common.experiment import Experiment
from server.figures import split_figures
from server.sums import SumTable
from simulations.baselines import BASELINES
from simulations.gains import TaskFigures, task_metrics
from simulations.tracked_run import UNTRACKED, Track, simulate_tracked

logger = logging.getLogger("fedmtl.compare")


def train_baseline(
    name: str, experiment: Experiment, agreement: Agreement, clients: Sequence[ClientData]
) -> TaskFigures:
    """Train a baseline of `simulations.baselines`: task -> metric on all test rows."""
    sums = SumTable.of(BASELINES[name](experiment, agreement, clients))
    return task_metrics(
        experiment, split_figures(experiment, sums, "test", experiment.task_weights())
    )


def train_federation(
    experiment: Experiment, engine: str, out: Path, track: Track = UNTRACKED
) -> TaskFigures:
    """Simulate a run and read it at its best round, else at its last.

    One that diverged has the figures of the best round before it did, or none: NaN.
    """
    try:
        results = simulate_tracked(experiment, engine, out, track)
    except NothingLearnedError as error:  # does not end the comparison
        logger.warning("%s, seed %d: %s", out.name, experiment.seed, error)
        return task_metrics(experiment, (error.best or {}).get("test") or {})
    return read_results(experiment, results)


def read_results(experiment: Experiment, results: Mapping[str, Any]) -> TaskFigures:
    """Read results.json at the best round by `BestBy`, else at the last."""
    return task_metrics(experiment, (results["best"] or results["final"])["test"] or {})
