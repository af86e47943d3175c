"""What run folders there are below a folder, and what became of each: the rows of `fedmtl runs`."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import ConfigError, FedMTLError
from common.locking import is_held
from common.status import DONE, FAILED, judge
from simulations.charts import is_figure
from simulations.formats import NOTHING, format_figure, format_seconds
from simulations.run_record import RunRecord, is_search, read_run, task_figures

WHOLE = "all rounds done"
WRITTEN = ("results.json", "metrics.jsonl", "experiment.toml")  # the newest of them dates a run


@dataclass(frozen=True)
class RunRow:
    """One run, as it is listed.

    Attributes:
        name: the folder, relative to the one that was searched, if that was one alone.
        path: the folder.
        experiment: its name.
        state: "done", "stopped: why", "running", "unfinished", or "failed".
        round: rounds done.
        rounds: rounds of the experiment.
        metrics: task -> its metric.
        figures: task -> the last trunk's metric on test rows; on validation rows where there are
            no test rows; None where there is neither.
        seed: of the experiment.
        seconds: time of all rounds; None before the first.
        epsilon: "client" and "example", as far as they are protected -> largest epsilon so far.
        when: UTC, when the newest of its figures were written.
        settings: dotted key -> value, of the whole experiment.
    """

    name: str
    path: str
    experiment: str
    state: str
    round: int
    rounds: int
    metrics: dict[str, str]
    figures: dict[str, float | None]
    seed: int
    seconds: float | None
    epsilon: dict[str, float | None]
    when: datetime
    settings: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Say it for machines; the settings stand in the folder's experiment.toml."""
        content = asdict(self)
        del content["settings"]
        return {**content, "when": self.when.isoformat(timespec="seconds")}

    def cells(self) -> list[str]:
        """Write it for people, a cell for each of `HEADINGS`."""
        figures = "\n".join(
            f"{task} {self.metrics[task]} {format_figure(figure)}"
            for task, figure in self.figures.items()
        )
        epsilons = "\n".join(f"{unit} {format_figure(e)}" for unit, e in self.epsilon.items())
        return [
            self.name,
            self.experiment,
            self.state,
            f"{self.round}/{self.rounds}",
            figures,
            str(self.seed),
            NOTHING if self.seconds is None else format_seconds(self.seconds),
            epsilons or NOTHING,
            f"{self.when.astimezone():%Y-%m-%d %H:%M}",
        ]


HEADINGS = (
    "name", "experiment", "state", "rounds", "figures", "seed", "time", "epsilon", "when",
)  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A folder that is listed by no row, and why."""

    folder: str
    reason: str


def list_runs(folders: Sequence[Path]) -> tuple[list[RunRow], list[LeftOut]]:
    """Read every run folder in or below some folders.

    Returns:
        The runs, and what is broken or holds no run.

    Raises:
        ConfigError: a folder does not exist.
    """
    rows: dict[Path, RunRow] = {}
    left_out: dict[Path, LeftOut] = {}
    for top in folders:
        if not top.is_dir():
            raise ConfigError(
                f"FOLDER must be a folder with runs in it, got '{top}', which is none; name the "
                "folder that simulate or compare wrote, as in fedmtl runs runs"
            )
        for path, reason in find_folders(top):
            name = path.resolve().name if path == top else str(path.relative_to(top))
            name = name if len(folders) == 1 else str(path)
            try:
                if reason:
                    raise ConfigError(reason)
                rows.setdefault(path.resolve(), describe_run(path, name))
            except (FedMTLError, OSError, ValueError, LookupError, TypeError) as error:
                left_out.setdefault(path.resolve(), LeftOut(str(path), _why(error)))
    return list(rows.values()), list(left_out.values())


def find_folders(top: Path) -> Iterator[tuple[Path, str]]:
    """Find run folders, not looking into them, and what in `top` holds none.

    Yields:
        A folder, and why it is none: empty for a run folder.
    """
    if is_run(top):
        yield top, ""
        return
    for child, problem in _subfolders(top):
        found, unread = 0, problem
        for path, reason in _walk(child):
            if reason:
                unread = unread or reason
            else:
                found += 1
                yield path, ""
        if unread or not found:
            yield child, unread or "no run folder: it has no experiment.toml, nor has one below it"


def is_run(folder: Path) -> bool:
    """Tell a run folder by its experiment; a search has one, too, and its runs are below it."""
    return (folder / "experiment.toml").is_file() and not is_search(folder)


def describe_run(path: Path, name: str) -> RunRow:
    """Read a run folder and sum it up.

    Raises:
        CheckpointError, ConfigError: it cannot be read; see `simulations.run_record.read_run`.
    """
    record = read_run(path)
    experiment, results = record.experiment, record.results
    last = record.rounds[-1] if record.rounds else {}
    settings = flatten(experiment.model_dump(mode="json", by_alias=True))
    written = max((path / f).stat().st_mtime for f in WRITTEN if (path / f).is_file())
    return RunRow(
        name=name,
        path=str(path),
        experiment=experiment.name,
        state=state_of(record),
        round=last.get("round", 0),
        rounds=experiment.federation.rounds,
        metrics={task: settings.metric_name for task, settings in experiment.tasks.items()},
        figures={task: final_figure(record, task) for task in experiment.tasks},
        seed=experiment.seed,
        seconds=(results or {}).get("seconds", last.get("elapsed_s")),
        epsilon=epsilon_of(record),
        when=datetime.fromtimestamp(written, UTC),
        settings=settings,
    )


def state_of(record: RunRecord) -> str:
    """Say what became of a run: a process that holds its lock is at work on it."""
    if is_at_work(record.path):
        return "running"
    if record.results:
        stopped = str(record.results["stopped"])
        return "done" if stopped == WHOLE else f"stopped: {stopped}"
    if (record.path / "status.json").is_file() and judge(record.path).status.state == FAILED:
        return "failed"
    if any(map(is_search, record.path.resolve().parents[2:3])):  # SEARCH/trials/NUMBER/RUN
        return "stopped: by its search"  # which prunes it, or does it anew elsewhere
    return "unfinished"


def is_at_work(path: Path) -> bool:
    """Tell whether a process works on a run folder; a deployed one may do so without a lock."""
    try:
        if is_held(path / "lock"):
            return True
    except (ImportError, OSError):  # no such locks on this system, or on this disk
        pass
    if not (path / "status.json").is_file():
        return False
    health = judge(path)
    return health.is_healthy and health.status.state != DONE


def final_figure(record: RunRecord, task: str) -> float | None:
    """Take the last trunk's figure of a task: on test rows, else on validation rows."""
    metric = record.experiment.tasks[task].metric_name
    for split in ("test", "validation"):
        figure: float | None = task_figures(record.final, split, task).get(metric)
        if is_figure(figure):
            return figure
    return None


def epsilon_of(record: RunRecord) -> dict[str, float | None]:
    """Take what a run has cost, for each unit that is protected; {} where none is."""
    last = record.rounds[-1] if record.rounds else {}
    told = (record.results or {}).get("privacy") or last.get("privacy") or {}
    return {unit: told[unit]["epsilon"] for unit in ("client", "example") if told.get(unit)}


def flatten(content: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Give every setting its dotted key; a table without keys is a setting too.

    >>> flatten({"seed": 3, "training": {"lr": 0.1, "schedule": {}}})
    {'seed': 3, 'training.lr': 0.1, 'training.schedule': {}}
    """
    settings: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            settings |= flatten(value, f"{above}{key}.")
        else:
            settings[f"{above}{key}"] = value
    return settings


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    if is_run(folder):
        yield folder, ""
        return
    for child, problem in _subfolders(folder):
        if problem:
            yield child, problem
        else:
            yield from _walk(child)


def _subfolders(folder: Path) -> Iterator[tuple[Path, str]]:
    """List a folder's folders by name; links, which could lead in circles, are passed over."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"cannot be read: {error.strerror}"
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield Path(entry.path), ""


def _why(error: Exception) -> str:
    if isinstance(error, FedMTLError):
        return "; ".join(str(error).splitlines())
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    return f"its files are not those of a run ({type(error).__name__})"
