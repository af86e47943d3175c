"""The search: draw trials, have them done, and write what came of them as it comes."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from common.errors import CheckpointError, ConfigError, FedMTLError
from common.experiment import Experiment
from common.experiment_file import load_experiment
from common.locking import take
from server.checkpoint import replace_text, told_where
from simulations.compare import require_new_folder
from simulations.jobs import run_as_drawn
from simulations.tracked_run import UNTRACKED, Track
from simulations.tuning.objectives import Objective, parse_objectives, require_figures
from simulations.tuning.space import Space, as_settings, grid_points, parse_space
from simulations.tuning.study import (
    OWN,
    PRUNERS,
    REASON,
    SAMPLERS,
    SECONDS,
    VALUES,
    draw_trial,
    open_study,
    queue_grid,
    queue_lost,
    require_optuna,
    tell_trial,
)
from simulations.tuning.trial import Job, Outcome, do_trial, load_settings, prepare

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

SETTINGS, EXPERIMENT = "settings.json", "experiment.toml"
OWN_SETTINGS = -1  # number of the job that has no trial
TRIED = 32  # settings of the space of which one at least must be valid before anything trains
DEFAULT_TRIALS = 20

Progress = Callable[[int, int], None]  # trials done, of how many


@dataclass(frozen=True)
class Search:
    """What a tuning does, as it stands in settings.json.

    Attributes:
        experiment: TOML of the resolved experiment.
        space: key -> its values, as they were typed.
        objectives: names; [] for the validation loss.
        sampler: a key of `SAMPLERS`.
        prune: one of `PRUNERS`.
        seeds: runs of a trial.
        trials: how many.
        command: that began it.
    """

    experiment: str
    space: Mapping[str, str]
    objectives: Sequence[str] = ()
    sampler: str = "tpe"
    prune: str = "median"
    seeds: int = 1
    trials: int = DEFAULT_TRIALS
    command: str = ""

    def save(self, folder: Path) -> None:
        """Write it, so that the search can be gone on with."""
        with told_where(folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / SETTINGS, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> "Search":
        """Read it back.

        Raises:
            CheckpointError: this is no folder of a tuning.
        """
        try:
            return cls(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{folder} is no folder of a tuning: it has no {SETTINGS}; start one with "
                "fedmtl tune EXPERIMENT --space KEY=VALUES --out DIR"
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / SETTINGS} cannot be read: {error}.") from error


@dataclass
class Tuning:
    """A search at work in its folder.

    Attributes:
        search: what it does.
        folder: where.
        study: Optuna's record.
        experiment: without a trial's settings.
        objectives: what is made better.
        space: what is searched.
        track: who is told of its runs.
        at_work: trials that are drawn and not told yet, by number.
    """

    search: Search
    folder: Path
    study: "Study"
    experiment: Experiment
    objectives: Sequence[Objective]
    space: Space
    track: Track = UNTRACKED
    at_work: dict[int, "Trial | None"] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The experiment's file."""
        return self.folder / EXPERIMENT

    def draw(self) -> Job | None:
        """Draw the next job: first the experiment's own settings, then trial after trial."""
        if OWN not in self.study.user_attrs and OWN_SETTINGS not in self.at_work:
            self.at_work[OWN_SETTINGS] = None
            shutil.rmtree(trial_folder(self.folder, OWN_SETTINGS), ignore_errors=True)
            return self._job(OWN_SETTINGS, {}, None)
        search = self.search
        trial = draw_trial(
            self.study, self.space, search.sampler, self.experiment.seed, search.trials
        )
        if trial is None:
            return None
        self.at_work[trial.number] = trial
        return self._job(trial.number, as_settings(trial.params), trial)

    def keep(self, job: Job, outcome: Outcome) -> None:
        """Enter what came of a job."""
        trial = self.at_work.pop(job.number)
        about = {REASON: outcome.reason, SECONDS: outcome.seconds, VALUES: outcome.values}
        if trial is None:
            self.study.set_user_attr(OWN, about)
        else:
            tell_trial(self.study, trial, means(outcome.values), about)

    def done(self) -> int:
        """Count the trials that came to something, or to nothing for a reason."""
        from optuna.trial import TrialState

        over = (TrialState.COMPLETE, TrialState.PRUNED)
        return len(self.study.get_trials(deepcopy=False, states=over))

    def _job(self, number: int, settings: Mapping[str, str], trial: "Trial | None") -> Job:
        prunes = trial is not None and self.search.prune != "none"
        return Job(
            number,
            settings,
            self.base,
            trial_folder(self.folder, number),
            range(self.search.seeds),
            self.objectives,
            self.folder if prunes else None,
            trial._trial_id if trial is not None else -1,
            self.track,
        )


def start_search(search: Search, out: Path) -> None:
    """Check a search before anything trains, and make its folder.

    Raises:
        FedMTLError: it cannot be done, or `out` exists; names the option and a way out.
    """
    require_optuna()
    require_new_folder(out)
    check_options(search)
    space = parse_space(search.space)
    if search.sampler == "grid":
        next(grid_points(space))
    search.save(out)
    with told_where(out):
        replace_text(out / EXPERIMENT, search.experiment)
    try:
        experiment = load_experiment(str(out / EXPERIMENT))
        require_figures(experiment)
        objectives = parse_objectives(search.objectives, experiment)
        if search.prune != "none" and len(objectives) > 1:
            raise ConfigError(
                f"--prune must be none with several objectives, got '{search.prune}': no one "
                "figure says which trial is worse; remove it"
            )
        prepare(out / EXPERIMENT, {}, objectives)
        require_valid_settings(out / EXPERIMENT, space)
    except FedMTLError:
        for name in (SETTINGS, EXPERIMENT):
            (out / name).unlink(missing_ok=True)
        out.rmdir()
        raise


def check_options(search: Search) -> None:
    """Refuse names that do not exist.

    Raises:
        ConfigError: names the option.
    """
    for option, name, known in (
        ("--sampler", search.sampler, tuple(SAMPLERS)),
        ("--prune", search.prune, PRUNERS),
    ):
        if name not in known:
            raise ConfigError(f"{option} must be one of {', '.join(known)}, got '{name}'.")


def require_valid_settings(base: Path, space: Space) -> None:
    """Draw settings until some are valid: a key that does not exist must not fail trial by trial.

    Raises:
        ConfigError: none of `TRIED` is; says why the first is not.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions = {key: values.distribution() for key, values in space.items()}
    first: ConfigError | None = None
    for _ in range(TRIED):
        try:
            load_settings(base, as_settings(study.ask(distributions).params))
            return
        except ConfigError as error:
            first = first or error
    raise ConfigError(
        f"--space: none of {TRIED} settings drawn from it is valid, such as:\n{first}"
    )


def run_search(
    folder: Path,
    jobs: int = 1,
    on_progress: Progress = lambda done, total: None,
    trackers: Sequence[str] = (),
) -> Tuning:
    """Do what is left of a search.

    Args:
        folder: of a search that `start_search` made.
        jobs: trials at a time, in processes of their own.
        on_progress: told of every trial that is done.
        trackers: told of every run; keys of `simulations.tracking.TRACKERS`.

    Returns:
        The search, done.

    Raises:
        FedMTLError: the folder cannot be used, or another process is at work in it.
    """
    with locked(folder):
        track = Track(trackers, folder)
        tuning = open_search(folder, track)
        queue_lost(tuning.study)
        total = tuning.search.trials
        if tuning.search.sampler == "grid":
            total = queue_grid(tuning.study, tuning.space)
        track.prepare()

        def keep(job: Job, outcome: Outcome) -> None:
            tuning.keep(job, outcome)
            on_progress(tuning.done(), total)

        try:
            run_as_drawn(do_trial, tuning.draw, jobs, keep)
        except BrokenProcessPool as error:
            raise CheckpointError(
                "a trial's process was ended from outside, maybe for want of memory; go on with "
                f"fewer at a time: fedmtl tune --resume {folder} --jobs 1"
            ) from error
        return tuning


def open_search(folder: Path, track: Track = UNTRACKED) -> Tuning:
    """Open a search as it stands, done or not.

    Raises:
        FedMTLError: the folder cannot be used.
    """
    require_optuna()
    search = Search.load(folder)
    with told_where(folder):
        replace_text(folder / EXPERIMENT, search.experiment)
    experiment = load_experiment(str(folder / EXPERIMENT))
    objectives = parse_objectives(search.objectives, experiment)
    study, space = open_study(folder, objectives), parse_space(search.space)
    return Tuning(search, folder, study, experiment, objectives, space, track)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from a folder while the block runs; not on Windows.

    Raises:
        CheckpointError: another one is at work in it.
    """
    try:
        handle = take(folder / "lock")
    except ImportError:
        yield
        return
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be used: {error.strerror}.") from error
    if handle is None:
        raise CheckpointError(f"{folder} is in use: another fedmtl tune is at work in it.")
    try:
        yield
    finally:
        os.close(handle)


def means(values: Sequence[Sequence[float]]) -> list[float] | None:
    """Average each objective over seeds; None without any.

    >>> means([[1.0, 4.0], [3.0, 6.0]])
    [2.0, 5.0]
    """
    return [fmean(column) for column in zip(*values, strict=True)] or None


def trial_folder(folder: Path, number: int) -> Path:
    """Name the folder of a trial's runs."""
    return folder / "trials" / ("own-settings" if number == OWN_SETTINGS else f"{number:04d}")
