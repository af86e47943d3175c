"""What a search came to: tune.json with every trial, and the best trial's experiment file."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_file import dump_experiment
from common.json_gaps import without_gaps
from server.checkpoint import replace_text, told_where
from simulations.compare import seed_folder
from simulations.gains import TaskFigures, spread, task_metrics
from simulations.run_record import read_run
from simulations.tuning.objectives import Objective
from simulations.tuning.objectives import to_json as describe_objectives
from simulations.tuning.search import OWN_SETTINGS, Tuning, trial_folder
from simulations.tuning.space import as_settings
from simulations.tuning.study import AGAIN, OWN, REASON, SECONDS, VALUES
from simulations.tuning.trial import load_settings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FIGURES, BEST, FRONT = "tune.json", "best.toml", "front"
CHOSEN_BY = "validation"

Figures = dict[str, Any]


def summarise(tuning: Tuning) -> Figures:
    """Tell all of a search that is done, or of as much of it as is.

    Returns:
        ``experiment``, ``fingerprint``, ``command``, ``sampler``, ``prune``, ``seeds``,
        ``metrics`` and ``space`` say what was searched; ``objectives``: ``{"name", "direction"}``
        each; ``trials``: ``{"number", "state", "reason", "settings", "values": {objective:
        spread}, "seconds", "folder"}`` each, with ``again`` where it repeats a lost one;
        ``own-settings``: such values of the experiment as it is; ``front``: numbers of the trials
        that none dominates, as good in all objectives and better in one; ``best``: ``{"number",
        "settings", "chosen-by", "test"}``, where ``test`` has the metric of every task on test
        rows, ``own-settings`` the same of the experiment as it is, and ``gain`` their difference
        seed by seed, higher is better; None where no trial has a figure.
    """
    search, experiment = tuning.search, tuning.experiment
    names = [objective.name for objective in tuning.objectives]
    trials = [
        describe_trial(t, names, tuning.folder) for t in tuning.study.get_trials(deepcopy=False)
    ]
    front = sorted(trial.number for trial in tuning.study.best_trials)
    own = tuning.study.user_attrs.get(OWN) or {}
    return {
        "experiment": experiment.name,
        "fingerprint": experiment.fingerprint(),
        "command": search.command,
        "sampler": search.sampler,
        "prune": search.prune,
        "seeds": list(range(search.seeds)),
        "metrics": {name: task.metric_name for name, task in experiment.tasks.items()},
        "private": any(experiment.privacy.levels),
        "objectives": describe_objectives(tuning.objectives),
        "space": dict(search.space),
        "trials": trials,
        "own-settings": {
            "reason": own.get(REASON, ""),
            "values": spreads(own.get(VALUES, []), names),
        },
        "front": front,
        "best": describe_best(tuning, trials, front),
    }


def describe_trial(trial: "FrozenTrial", names: Sequence[str], folder: Path) -> Figures:
    """Describe one trial."""
    about = trial.user_attrs
    reason = about.get(REASON, "")
    if trial.state.name == "FAIL":
        reason = "lost: its process was ended; a later trial repeats it"
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "reason": reason,
        "settings": as_settings(trial.params),
        "values": spreads(about.get(VALUES, []), names),
        "seconds": about.get(SECONDS),
        "folder": str(trial_folder(folder, trial.number).relative_to(folder)),
        **({AGAIN: about[AGAIN]} if AGAIN in about else {}),
    }


def describe_best(
    tuning: Tuning, trials: Sequence[Figures], front: Sequence[int]
) -> Figures | None:
    """Choose the best trial on validation rows, and only then read its figures on test rows."""
    if not front:
        return None
    number = choose_best(tuning.objectives, [trials[n] for n in front])
    seeds = range(tuning.search.seeds)
    found = read_test(tuning.folder, number, seeds)
    own = read_test(tuning.folder, OWN_SETTINGS, seeds)
    return {
        "number": number,
        "settings": trials[number]["settings"],
        "chosen-by": CHOSEN_BY,
        "test": by_task(tuning.experiment, found),
        "own-settings": by_task(tuning.experiment, own),
        "gain": gains(tuning.experiment, found, own),
    }


def choose_best(objectives: Sequence[Objective], front: Sequence[Figures]) -> int:
    """Choose a trial of the front: the one of the best mean rank over the objectives.

    >>> def trial(number, *values):
    ...     means = dict(zip(["loss", "t/loss"], ({"mean": v} for v in values)))
    ...     return {"number": number, "values": means}
    >>> choose_best(
    ...     [Objective("loss"), Objective("loss", "t")],
    ...     [trial(0, 1.0, 9.0), trial(1, 2.0, 3.0), trial(2, 2.5, 4.0)],
    ... )
    1
    """
    ranks = dict.fromkeys((trial["number"] for trial in front), 0)
    for objective in objectives:
        values = {t["number"]: t["values"][objective.name]["mean"] for t in front}
        for place, number in enumerate(
            sorted(values, key=lambda n: values[n], reverse=objective.is_maximised)
        ):
            ranks[number] += place
    best: int = min(ranks, key=lambda number: (ranks[number], number))
    return best


def read_test(folder: Path, number: int, seeds: Sequence[int]) -> list[TaskFigures]:
    """Read a trial's metrics on test rows, a seed each, at the round that validation chose."""
    rows = []
    for seed in seeds:
        path = seed_folder(trial_folder(folder, number), seed)
        if not (path / "results.json").is_file():
            return []
        record = read_run(path)
        results = record.results or {}
        evaluation = results["best"] or results["final"]
        rows.append(task_metrics(record.experiment, evaluation.get("test") or {}))
    return rows


def by_task(experiment: Experiment, rows: Sequence[TaskFigures]) -> Figures:
    """Summarise each task's metric over seeds; {} without any."""
    return {t: spread([row[t] for row in rows]) for t in experiment.tasks} if rows else {}


def gains(
    experiment: Experiment, found: Sequence[TaskFigures], own: Sequence[TaskFigures]
) -> Figures:
    """Subtract seed by seed, signed so that above 0 is better."""
    from common.metrics import METRICS

    if not found or not own:
        return {}
    signs = {
        name: 1 if METRICS[task.metric_name].higher_is_better else -1
        for name, task in experiment.tasks.items()
    }
    return {
        name: spread([sign * (f[name] - o[name]) for f, o in zip(found, own, strict=True)])
        for name, sign in signs.items()
    }


def spreads(values: Sequence[Sequence[float]], names: Sequence[str]) -> Figures:
    """Summarise each objective over seeds; {} where there are no values."""
    columns = zip(names, zip(*values, strict=True), strict=True) if values else ()
    return {name: spread(column) for name, column in columns}


def write_outcome(tuning: Tuning) -> Figures:
    """Write tune.json, best.toml, and a file for each trial of a front.

    Raises:
        ConfigError: no trial has a figure; tune.json tells why of each.
        CheckpointError: they cannot be written.
    """
    outcome = summarise(tuning)
    with told_where(tuning.folder):
        text = json.dumps(without_gaps(outcome), indent=1, allow_nan=False)
        replace_text(tuning.folder / FIGURES, text)
        if outcome["best"] is None:
            raise ConfigError(what_failed(outcome, tuning.folder))
        replace_text(tuning.folder / BEST, as_file(tuning, outcome["best"]["settings"]))
        if len(tuning.objectives) > 1:
            (tuning.folder / FRONT).mkdir(exist_ok=True)
            for old in (tuning.folder / FRONT).glob("trial-*.toml"):
                old.unlink()
            for number in outcome["front"]:
                text = as_file(tuning, outcome["trials"][number]["settings"])
                replace_text(tuning.folder / FRONT / f"trial-{number:04d}.toml", text)
    return outcome


def as_file(tuning: Tuning, settings: Mapping[str, str]) -> str:
    """Write the experiment with a trial's settings, ready to run."""
    return dump_experiment(load_settings(tuning.base, settings))


def what_failed(outcome: Figures, folder: Path) -> str:
    """Say in a line why there is no best trial."""
    reasons = [trial["reason"] for trial in outcome["trials"] if trial["reason"]]
    first = f", such as: {reasons[0]}" if reasons else ""
    return (
        f"no trial came to a figure{first}; {folder / FIGURES} tells why of each; correct --space "
        f"and start anew with another --out, or draw more: fedmtl tune --resume "
        f"{shlex.quote(str(folder))} --trials N"
    )
