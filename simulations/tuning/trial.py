"""One trial: an experiment with settings that were drawn, trained with every seed and judged."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import CheckpointError, FedMTLError, NothingLearnedError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.quieting import without_warnings
from simulations.charts import is_figure
from simulations.check import check_clients
from simulations.compare import seed_folder, with_seed
from simulations.run_record import Figures
from simulations.simulate import check_options, choose_engine
from simulations.tracked_run import UNTRACKED, Track, simulate_tracked
from simulations.tuning.objectives import Objective, require_figures, require_same_measure
from simulations.tuning.space import Settings

if TYPE_CHECKING:
    from optuna.trial import Trial

Values = list[list[float]]  # a seed each: its objectives


@dataclass(frozen=True)
class Job:
    """What a trial is to do.

    Attributes:
        number: of the trial; -1 for the experiment's own settings.
        settings: overrides.
        base: file of the experiment without them.
        folder: for its run folders, ``seed-N``.
        seeds: one run each.
        objectives: what to judge.
        study: folder of the study that may stop the trial; None where none may.
        trial_id: Optuna's name of the trial in it.
        track: who is told of its runs.
    """

    number: int
    settings: Settings
    base: Path
    folder: Path
    seeds: Sequence[int]
    objectives: Sequence[Objective]
    study: Path | None = None
    trial_id: int = -1
    track: Track = UNTRACKED


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        values: of every seed; [] where the trial is pruned.
        reason: why it is pruned; "" where it is not.
        seconds: it took.
    """

    values: Values = field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0


class PrunedError(Exception):
    """A trial is stopped on its way; not an error of the user's."""


class Pruner:
    """Follows a run, and stops it where other trials were better at the same round.

    Args:
        trial: Optuna's, which knows of the others.
        objective: by which they are compared.
    """

    def __init__(self, trial: "Trial", objective: Objective) -> None:
        self.trial, self.objective = trial, objective

    def __call__(self, line: Figures) -> None:
        """Report a round.

        Raises:
            PrunedError: this was the last one.
        """
        value = self.objective.figure(line["evaluation"])
        if not is_figure(value):
            return
        self.trial.report(value, line["evaluation"]["trunk-round"])
        if self.trial.should_prune():
            raise PrunedError(
                f"stopped after round {line['round']}: {self.objective.name} was worse than the "
                "median of earlier trials at this round"
            )


def do_trial(job: Job) -> Outcome:
    """Train with every seed, one after the other; what cannot run is pruned with its reason.

    Raises:
        CheckpointError: a run folder cannot be written.
    """
    started = time.perf_counter()
    values: Values = []
    reason = ""
    try:
        experiment, engine = prepare(job.base, job.settings, job.objectives)
        for place, seed in enumerate(job.seeds):
            pruner = open_pruner(job) if place == 0 else None
            run = with_seed(experiment, seed)
            values.append(judge_run(run, engine, seed_folder(job.folder, seed), job, pruner))
    except CheckpointError:
        raise  # a full disk is not the settings' fault: the search can be gone on with
    except (FedMTLError, PrunedError) as error:
        values, reason = [], "; ".join(str(error).splitlines())
    except Exception as error:  # else a search could never get past this trial
        values, reason = [], describe_break(error, job)
    return Outcome(values, reason, time.perf_counter() - started)


def describe_break(error: Exception, job: Job) -> str:
    """Name an error that nobody foresaw, and how to see it; its text may tell of rows."""
    words = ["fedmtl", "simulate", str(job.base), "--engine", "auto"]
    words += [w for key, value in job.settings.items() for w in ("--set", f"{key}={value}")]
    return f"it broke with a {type(error).__name__}; to see where: {shlex.join(words)}"


def prepare(
    base: Path, settings: Settings, objectives: Sequence[Objective]
) -> tuple[Experiment, str]:
    """Read the experiment with a trial's settings, check all, and choose its engine.

    Raises:
        FedMTLError: they cannot run, or cannot be compared with those of other trials.
    """
    experiment = load_settings(base, settings)
    require_same_measure(experiment, load_experiment(str(base)), objectives)
    require_figures(experiment)
    check_clients(experiment)
    engine, _ = choose_engine(experiment)
    check_options(experiment, engine, workers=1, profile=False)
    return experiment, engine


def load_settings(base: Path, settings: Settings) -> Experiment:
    """Read an experiment with a trial's settings."""
    return load_experiment(str(base), [f"{key}={value}" for key, value in settings.items()])


def judge_run(
    experiment: Experiment, engine: str, out: Path, job: Job, pruner: Pruner | None
) -> list[float]:
    """Simulate a run, and read its objectives at its best round.

    Raises:
        FedMTLError: it cannot run, or has no figures.
        PrunedError: other trials were better.
    """
    with without_warnings("fedmtl.server"):  # of a trial that diverges, one a client and round
        results = simulate_tracked(experiment, engine, out, job.track, pruner)
    evaluation = results["best"] or results["final"]
    found = [objective.figure(evaluation) for objective in job.objectives]
    values = [value for value in found if is_figure(value)]
    if len(values) < len(found):
        raise NothingLearnedError(f"seed {experiment.seed}: an objective has no figure")
    return values


def open_pruner(job: Job) -> Pruner | None:
    """Open the study that may stop a trial, where one may."""
    if job.study is None:
        return None
    from optuna.trial import Trial

    from simulations.tuning.study import open_study

    return Pruner(Trial(open_study(job.study, job.objectives), job.trial_id), job.objectives[0])
