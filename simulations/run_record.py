"""A run folder read back, finished or not: what the report and other readers need of it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.experiment import Experiment
from common.experiment_file import load_experiment

Figures = dict[str, Any]  # as in metrics.jsonl and results.json

# What readers rely on.
ROUND_KEYS = frozenset({"round", "clients", "traffic", "weights", "train", "evaluation"})
RESULT_KEYS = frozenset({"stopped", "final", "clients", "traffic"})
HOSTILE_KEYS = frozenset({"attack", "clients"})


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says.

    Attributes:
        path: the folder.
        experiment: the resolved experiment.
        experiment_toml: the same, as it stands in the file.
        environment: versions, seed, machine; {} where the file is missing.
        rounds: the lines of metrics.jsonl.
        results: the content of results.json, or None where the run did not end.
        hostile: who was hostile in a simulation, and how; None where nobody was.
    """

    path: Path
    experiment: Experiment
    experiment_toml: str
    environment: Figures
    rounds: list[Figures]
    results: Figures | None
    hostile: Figures | None = None

    @property
    def evaluations(self) -> list[Figures]:
        """The evaluations of trunks in the order of their rounds, that of the last one included."""
        by_round = {
            line["evaluation"]["trunk-round"]: line["evaluation"]
            for line in self.rounds
            if line["evaluation"]
        }
        if self.results:
            by_round[self.results["final"]["trunk-round"]] = self.results["final"]
        return [by_round[number] for number in sorted(by_round)]

    @property
    def final(self) -> Figures | None:
        """The evaluation of the last trunk; of an unfinished run, the latest there is."""
        evaluations = self.evaluations
        return evaluations[-1] if evaluations else None


def experiment_of(folder: Path, data: str | None = None) -> Experiment:
    """Read the experiment of a run folder.

    Args:
        folder: the run folder.
        data: where raw data is, if not where the experiment says.

    Raises:
        CheckpointError: it is none.
        ConfigError: its experiment does not fit this version's schema.
    """
    require_run(folder)
    return load_experiment(str(folder / "experiment.toml"), data_path=data)


def read_run(path: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        CheckpointError: it is none, or one of its files cannot be read.
        ConfigError: its experiment does not fit this version's schema.
    """
    require_run(path)
    experiment_file = path / "experiment.toml"
    return RunRecord(
        path=path,
        experiment=load_experiment(str(experiment_file)),
        experiment_toml=experiment_file.read_text(encoding="utf-8"),
        environment=_read_json(path / "environment.json") or {},
        rounds=read_rounds(path / "metrics.jsonl"),
        results=_read_json(path / "results.json", RESULT_KEYS),
        hostile=_read_json(path / "hostile.json", HOSTILE_KEYS),
    )


def is_search(folder: Path) -> bool:
    """Tell the folder of a `fedmtl tune` by its settings; it has an experiment, too."""
    return (folder / "settings.json").is_file()


def require_run(folder: Path) -> None:
    """Refuse what is no run folder.

    Raises:
        CheckpointError: it is none.
    """
    if not (folder / "experiment.toml").is_file():
        raise CheckpointError(f"{folder} is no run folder: it has no experiment.toml")
    if is_search(folder):
        raise CheckpointError(
            f"{folder} is no run folder but a search of fedmtl tune: its page is tune.html, and "
            f"its runs are below {folder / 'trials'}"
        )


def read_rounds(path: Path) -> list[Figures]:
    """Read metrics.jsonl; a last line that was torn by a crash is passed over.

    Raises:
        CheckpointError: another line is no round's.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rounds = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or not line.keys() >= ROUND_KEYS:
                raise ValueError("not a round")
            rounds.append(line)
        except ValueError as error:
            if number < len(lines):
                raise CheckpointError(f"{path}, line {number} is no round: {error}.") from error
    return rounds


def read_beside(record: RunRecord, file: str, keys: frozenset[str], command: str) -> Figures | None:
    """Read what a command left in a run folder, beside the run's own files.

    Args:
        record: of the run.
        file: its name, a JSON table with "fingerprint".
        keys: that it has at least.
        command: that writes it, for the error.

    Returns:
        None where there is none, or it is of other settings than the folder's run.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = record.path / file
    if not path.is_file():
        return None
    try:
        found: Figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found.keys() >= keys:
            raise ValueError(f"it must be a table with {', '.join(sorted(keys))}")
    except ValueError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; remove it, or write it anew with {command}"
        ) from error
    return found if found["fingerprint"] == record.experiment.fingerprint() else None


def task_figures(evaluation: Figures | None, split: str, task: str) -> Figures:
    """Take one task's figures on one split out of an evaluation; {} where there are none."""
    figures: Figures = ((evaluation or {}).get(split) or {}).get("tasks", {}).get(task, {})
    return figures


def _read_json(path: Path, keys: frozenset[str] = frozenset()) -> Figures | None:
    if not path.is_file():
        return None
    try:
        content: Figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not keys <= content.keys():
            raise ValueError(f"it must be a table with {', '.join(sorted(keys)) or 'keys'}")
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return content
