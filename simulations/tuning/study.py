"""The study: Optuna's record of all trials, in one SQLite file that outlives the process."""

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import CheckpointError, ConfigError
from common.seeding import derive_key
from simulations.tuning.objectives import Objective
from simulations.tuning.space import Space, grid_points

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

FILE, NAME = "tune.sqlite", "tune"
SAMPLERS = {
    "tpe": "Bayesian: where good trials were dense; Bergstra et al., NeurIPS 2011",
    "random": "evenly over the space; Bergstra and Bengio, JMLR 2012",
    "grid": "every combination of listed values",
}
PRUNERS = ("median", "none")
STARTUP, WARMUP = 5, 3  # trials that nothing stops, and rounds of a trial before which nothing does
WAIT_S = 60  # for another process that writes the file
REASON, SECONDS, VALUES, AGAIN = "reason", "seconds", "values", "again"
OWN = "own-settings"  # of the study: what the experiment's own settings came to


def require_optuna() -> None:
    """Refuse to go on without the library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "fedmtl tune needs Optuna, which is not installed: pip install 'fedmtl[tune]'"
        ) from error


def open_study(folder: Path, objectives: Sequence[Objective]) -> "Study":
    """Open a folder's study, or start it.

    Raises:
        CheckpointError: its file cannot be read or written.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    path = (folder / FILE).absolute()
    optuna.logging.set_verbosity(logging.WARNING)  # of this process, which may be a trial's
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{FILE}",  # in words alone: a folder may have a ? or a % in its name
            engine_kwargs={
                "creator": partial(sqlite3.connect, path, WAIT_S, check_same_thread=False)
            },
        )
        return optuna.create_study(
            storage=storage,
            study_name=NAME,
            directions=["maximize" if o.is_maximised else "minimize" for o in objectives],
            pruner=optuna.pruners.MedianPruner(STARTUP, WARMUP),
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / FILE} cannot be used: {reason}.") from error


def make_sampler(name: str, seed: int, drawn: int) -> "BaseSampler":
    """Make the sampler of one draw, which depends on the seed, its place and the trials so far.

    So an interrupted search goes on as it would have, and never draws its first trials anew.
    """
    import optuna

    key = derive_key(seed, "tune", drawn) % 2**32
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=key)
    return optuna.samplers.RandomSampler(seed=key)


def queue_grid(study: "Study", space: Space) -> int:
    """Put every combination in line, those aside that stand there already; returns their number."""
    points = list(grid_points(space))
    for point in points:
        study.enqueue_trial(point, skip_if_exists=True)
    return len(points)


def queue_lost(study: "Study") -> int:
    """Mark trials that a killed process left as failed, and put the same settings in line again.

    Returns:
        How many there were.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    queued = {trial.user_attrs.get(AGAIN) for trial in trials}
    lost = [trial for trial in trials if trial.state == TrialState.RUNNING]
    for trial in lost:
        if trial.number not in queued:  # else a process was killed right here
            settings = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(settings, user_attrs={AGAIN: trial.number})
        study.tell(trial.number, state=TrialState.FAIL)
    return len(lost)


def draw_trial(study: "Study", space: Space, sampler: str, seed: int, most: int) -> "Trial | None":
    """Take the next trial: one in line, else one that the sampler draws; None where all are drawn.

    Args:
        study: the study.
        space: what to draw from.
        sampler: a key of `SAMPLERS`.
        seed: of the sampler.
        most: how many trials there are to be, those aside that repeat a lost one.
    """
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    drawn = sum(AGAIN not in trial.user_attrs for trial in trials)
    if drawn >= most and not any(trial.state == TrialState.WAITING for trial in trials):
        return None
    study.sampler = make_sampler(sampler, seed, drawn)
    return study.ask({key: values.distribution() for key, values in space.items()})


def tell_trial(
    study: "Study", trial: "Trial", values: Sequence[float] | None, about: Mapping[str, Any]
) -> None:
    """Enter what came of a trial; without values it is pruned."""
    from optuna.trial import TrialState

    for key, value in about.items():
        trial.set_user_attr(key, value)
    if values is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, list(values))
