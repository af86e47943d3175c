"""Each task of a run trained alone, so that one can see what training them together gained.

The yardstick of a task is the same federation with a loss in which that task alone has a weight:
the same clients (those that hold it), rows, splits, seed, trunk, algorithm and rounds. Run and
yardstick are each read at the best round by ``evaluation.best-by``; where that names another task,
which a yardstick does not learn, by the yardstick's validation loss.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.availability import leave_out
from common.best import LOSS
from common.clients import open_clients
from common.errors import CheckpointError, ConfigError
from common.experiment import Experiment
from common.sections.model import Loss
from simulations.baselines import read_clients
from simulations.compare import write_figures
from simulations.contenders import read_results, train_baseline, train_federation
from simulations.gains import YARDSTICK as LOCAL
from simulations.gains import TaskFigures, delta_m, relative_gain
from simulations.holdout import with_clients
from simulations.jobs import run_jobs
from simulations.run_lock import at_work
from simulations.run_record import RunRecord, read_run
from simulations.yardstick_section import FILE

FOLDER = "yardstick"  # in the run folder: a run folder for every task
FEDERATED = "single-task federated"

Figures = dict[str, Any]
Progress = Callable[[int, int], None]  # trainings done, of how many


@dataclass(frozen=True)
class Job:
    """One task to be trained alone.

    Attributes:
        task: its name.
        experiment: in which it alone has a weight.
        folder: its run folder.
    """

    task: str
    experiment: Experiment
    folder: Path


def measure_yardsticks(
    run: Path,
    *,
    data: str | None = None,
    local: bool = False,
    jobs: int = 1,
    on_progress: Progress = lambda done, total: None,
) -> Figures:
    """Train every task of a finished run alone, and hold the run against that.

    What an earlier call finished is kept; what it was interrupted in is trained anew.

    Args:
        run: a run folder whose run ended.
        data: where raw data is, if not where the experiment says.
        local: hold it against models of single clients, too, which nothing was federated for.
        jobs: tasks trained at a time, in processes of their own.
        on_progress: called after every training.

    Returns:
        What yardstick.json holds: "run" and, for each of "yardsticks", "tasks", both task -> test
        figure; "gains", task -> percent; "delta-m", their mean; see `simulations.gains`.

    Raises:
        CheckpointError: the folder cannot be read or written, or the run has not ended.
        ConfigError: the run cannot be held against single tasks.
        DataError: the data cannot be read.
    """
    record = read_run(run)
    own = figures_of_run(record)
    experiment = record.experiment
    if data is not None:
        placed = experiment.data.model_copy(update={"path": data})
        experiment = experiment.model_copy(update={"data": placed})
    place = run / FOLDER
    place.mkdir(exist_ok=True)
    with at_work(place):
        plan = [
            Job(task, alone(experiment, task, record), place / task) for task in experiment.tasks
        ]
        total = len(plan) + local
        found: TaskFigures = {}

        def on_result(job: Job, figure: float) -> None:
            found[job.task] = figure
            on_progress(len(found), total)

        run_jobs(_train, plan, jobs, on_result)
        yardsticks = {FEDERATED: {task: found[task] for task in experiment.tasks}}
        if local:
            clients, agreement = read_clients(experiment)
            yardsticks[LOCAL] = train_baseline(LOCAL, experiment, agreement, clients)
            on_progress(total, total)
        told = describe(record, own, yardsticks)
        write_figures(run / FILE, told)
    return told


def figures_of_run(record: RunRecord) -> TaskFigures:
    """Read a run's test figures at its best round, else at its last.

    Raises:
        CheckpointError: the run has not ended.
        ConfigError: it has fewer than two tasks, or no figures on test rows.
    """
    if record.results is None:
        raise CheckpointError(
            f"{record.path} must be a run that ended, and has no results.json; go on with it: "
            f"fedmtl simulate --resume {record.path}"
        )
    if len(record.experiment.tasks) < 2:
        raise ConfigError(
            f"{record.path} must be a run of two tasks or more, got one, which is its own "
            "yardstick; choose another run"
        )
    figures = read_results(record.experiment, record.results)
    if all(figure != figure for figure in figures.values()):
        raise ConfigError(
            f"{record.path} must have figures on test rows, got none; choose a run with data.test "
            "above 0 whose figures its clients tell"
        )
    return figures


def alone(experiment: Experiment, task: str, record: RunRecord) -> Experiment:
    """Make the experiment of one task's yardstick.

    The other tasks stay, with weight 0: they decide splits, and who is left out.

    Raises:
        ConfigError: nobody holds the task, or the experiment cannot be had with one task.
    """
    tasks = {
        name: own.model_copy(update={"weight": 1.0 if name == task else 0.0})
        for name, own in experiment.tasks.items()
    }
    trunk = experiment.trunk.model_copy(
        update={"sharing": "hard", "options": {}, "task_parts": None}
    )
    loss = Loss(weighting="manual")
    evaluation = experiment.evaluation
    if evaluation.best_by != task:  # one without a weight must not choose the round
        evaluation = evaluation.model_copy(update={"best_by": LOSS})
    changed = {"tasks": tasks, "loss": loss, "trunk": trunk, "evaluation": evaluation}
    single = experiment.model_copy(update=changed)
    single = _among_holders(single, task, record)
    return Experiment.model_validate(single.model_dump(mode="json", by_alias=True))


def describe(record: RunRecord, own: TaskFigures, yardsticks: Mapping[str, TaskFigures]) -> Figures:
    """Put together what yardstick.json holds."""
    experiment = record.experiment
    metrics = {name: task.metric_name for name, task in experiment.tasks.items()}
    return {
        "fingerprint": experiment.fingerprint(),
        "metrics": metrics,
        "run": own,
        "yardsticks": {
            name: {
                "tasks": figures,
                "gains": {
                    task: relative_gain(metrics[task], own[task], figures[task]) for task in metrics
                },
                "delta-m": delta_m(experiment, own, figures),
            }
            for name, figures in yardsticks.items()
        },
    }


def _among_holders(experiment: Experiment, task: str, record: RunRecord) -> Experiment:
    """Leave out clients that do not hold the task, as far as the run tells who does."""
    clients: Mapping[str, Any] = (record.results or {}).get("clients", {})
    others = {name for name, own in clients.items() if task not in own["tasks"]}
    if not others:
        return experiment
    names = open_clients(experiment).names
    holders = tuple(name for name in names if name not in others)
    if not holders:
        raise ConfigError(f"task '{task}' must be held by a client of the run, and is by none")
    federation = experiment.federation
    changes: dict[str, Any] = {"availability": leave_out(federation.availability, others)}
    if federation.clients_per_round != "all":
        changes["clients_per_round"] = min(federation.clients_per_round, len(holders))
    federation = federation.model_copy(update=changes)
    return with_clients(experiment.model_copy(update={"federation": federation}), holders)


def _train(job: Job) -> float:
    """Train one task alone, unless that was done: its figure."""
    done = _read_done(job)
    if done is None:
        if job.folder.exists():  # interrupted, or of other settings
            shutil.rmtree(job.folder)
        done = train_federation(job.experiment, "auto", job.folder)
    return done[job.task]


def _read_done(job: Job) -> TaskFigures | None:
    """Read the figures of a training that ended; None where there is none of these settings."""
    try:
        record = read_run(job.folder)
    except (CheckpointError, ConfigError, json.JSONDecodeError):
        return None
    is_ours = record.experiment.fingerprint() == job.experiment.fingerprint()
    if record.results is None or not is_ours:
        return None
    return read_results(job.experiment, record.results)
