"""Trackers: programs that show a run's figures while it trains, beside the run folder.

The run folder stays the source of truth. A tracker is told what metrics.jsonl and results.json
hold, never the other way round; it changes nothing of a run, and one that fails is let go.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.errors import ConfigError
from common.experiment import Experiment
from common.experiment_problems import suggest
from common.journal import describe_error
from simulations.charts import is_figure
from simulations.run_list import flatten
from simulations.run_record import Figures, read_rounds

logger = logging.getLogger("fedmtl.tracking")


class Point(NamedTuple):
    """A figure of a run, as in ``Point("validation/digit/accuracy", 0.91, 12)``."""

    tag: str
    value: float
    step: int  # rounds that the trunk was trained, for an evaluation; else the round


class Tracker(Protocol):
    """What is told of a run; whatever it raises ends it, and not the run."""

    def log(self, points: Sequence[Point]) -> None:
        """Take figures of one round."""

    def close(self, *, is_whole: bool) -> None:
        """Write out what is kept back; `is_whole` where the run ended by itself."""


@dataclass(frozen=True)
class Kind:
    """How a tracker is made.

    Attributes:
        about: what it is.
        packages: must be there.
        module: has ``open_tracker(folder, experiment, name, group)``.
    """

    about: str
    packages: tuple[str, ...]
    module: str


TRACKERS: Mapping[str, Kind] = {
    "tensorboard": Kind(
        "event files in RUN/tensorboard", ("tensorboard",), "simulations.tensorboard_tracker"
    ),
    "mlflow": Kind(
        "mlflow.db beside the run folder, or where MLFLOW_TRACKING_URI says",
        ("mlflow", "sqlalchemy", "alembic"),
        "simulations.mlflow_tracker",
    ),
    "wandb": Kind(
        "Weights & Biases' offline files in RUN/wandb", ("wandb",), "simulations.wandb_tracker"
    ),
}
NAMING = ("data.clients", "federation.availability")  # settings that name clients
INSTALL = 'pip install "fedmtl[tracking]"'


def parse_trackers(text: str) -> list[str]:
    """Read ``--track``: names of trackers with commas between, whose packages are there.

    Raises:
        ConfigError: a line for every name that is wrong or whose package is missing.

    >>> parse_trackers("")
    []
    """
    names = [name.strip() for name in text.split(",")] if text else []
    problems = []
    for name in names:
        if name not in TRACKERS:
            problems.append(
                f"--track must be some of {', '.join(TRACKERS)}, with commas between, got "
                f"'{name}'.{suggest(name, list(TRACKERS))}"
            )
        elif missing := [p for p in TRACKERS[name].packages if find_spec(p) is None]:
            problems.append(
                f"--track {name} needs {', '.join(missing)}, which is not installed; install it "
                f"with {INSTALL}, or track without it"
            )
    if problems:
        raise ConfigError("\n".join(problems))
    return list(dict.fromkeys(names))


class Tracking:
    """Tells trackers of every round of a run.

    They open at the first round, when the run folder is there, and are told of all rounds before
    it: of a resumed run they have the whole, whether its first sitting was tracked or not.

    Args:
        names: keys of `TRACKERS`.
        folder: the run folder.
        experiment: the resolved experiment.
        group: folder of the comparison or the search that the run belongs to.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        experiment: Experiment,
        group: Path | None = None,
    ) -> None:
        self.names, self.folder, self.experiment = names, folder, experiment
        self.group = group
        self._open: dict[str, Tracker] = {}
        self._has_begun = self._is_whole = False

    def on_round(self, line: Figures) -> None:
        """Pass a round's line of metrics.jsonl on."""
        if not self._has_begun:
            self._begin(line["round"])
        self._tell(list(points_of(line)))

    def finish(self, results: Figures) -> None:
        """Pass on the last evaluation, which belongs to no round."""
        self._tell(list(evaluation_points(results["final"])))
        self._is_whole = True

    def close(self) -> None:
        """Close all trackers; also where the run did not end."""
        for name in list(self._open):
            tracker = self._open.pop(name)
            self._try(name, partial(tracker.close, is_whole=self._is_whole))

    def _begin(self, number: int) -> None:
        self._has_begun = True
        for name in self.names:
            self._try(name, partial(self._start, name))
        if self._open and number > 1:
            for line in read_rounds(self.folder / "metrics.jsonl"):
                if line["round"] < number:
                    self._tell(list(points_of(line)))

    def _start(self, name: str) -> None:
        module = import_module(TRACKERS[name].module)
        folder, group = self.folder.resolve(), self.group
        top = folder if group is None else group.resolve()
        told = folder.relative_to(top.parent).as_posix()
        self._open[name] = module.open_tracker(
            self.folder, self.experiment, told, "" if group is None else top.name
        )

    def _tell(self, points: Sequence[Point]) -> None:
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, points))

    def _try(self, name: str, act: Callable[[], None]) -> None:
        """Do something with a tracker; let go of it where that fails, and say so once."""
        try:
            act()
        except Exception as error:  # whatever another's program raises
            self._open.pop(name, None)
            logger.warning(
                "tracker %s failed and is told no more of this run (%s); the run goes on, and its "
                "figures stand in metrics.jsonl",
                name,
                describe_error(error),
            )


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """Give a tracker an experiment's settings by dotted key, without those that name clients."""
    settings = flatten(experiment.model_dump(mode="json", by_alias=True, exclude_none=True))
    return {key: value for key, value in settings.items() if key not in NAMING}


def points_of(line: Figures) -> Iterator[Point]:
    """Take every figure out of a round's line; one that does not exist is left out."""
    number = line["round"]
    found = {
        **_losses("train", line["train"]),
        **{f"weight/{task}": weight for task, weight in line["weights"].items()},
        **{f"traffic/{key}": count for key, count in line["traffic"].items()},
        "clients/asked": line["clients"]["asked"],
        "clients/answered": line["clients"]["answered"],
        "time/round-s": line.get("time_s"),
        "time/elapsed-s": line.get("elapsed_s"),
        **{
            f"privacy/{unit}/{key}": figure
            for unit, told in line.get("privacy", {}).items()
            if isinstance(told, dict)
            for key, figure in told.items()
        },
    }
    yield from _points(found, number)
    if line["evaluation"]:
        yield from evaluation_points(line["evaluation"])


def evaluation_points(evaluation: Figures) -> Iterator[Point]:
    """Take every figure out of an evaluation, at the rounds that its trunk was trained."""
    for split in ("validation", "test"):
        yield from _points(_losses(split, evaluation.get(split) or {}), evaluation["trunk-round"])


def _losses(what: str, figures: Figures) -> dict[str, Any]:
    """Name the loss of all tasks, and every figure of each; the spread's with its level."""
    named: dict[str, Any] = {f"{what}/loss": figures.get("loss")}
    for task, own in figures.get("tasks", {}).items():
        for key, value in own.items():
            if isinstance(value, dict):
                named |= {f"{what}/{task}/{key}-{level}": v for level, v in value.items()}
            else:
                named[f"{what}/{task}/{key}"] = value
    return named


def _points(named: Mapping[str, Any], step: int) -> Iterator[Point]:
    for tag, value in named.items():
        if isinstance(value, int | float) and is_figure(value):
            yield Point(tag, float(value), step)
