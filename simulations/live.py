"""Progress of a run while it runs: a live view on a terminal, plain lines elsewhere.

Rounds can take five milliseconds, so `on_round` only keeps what the view needs; drawing happens
four times a second. Everything here goes to stderr, so that stdout stays clean for results.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.experiment import Experiment
from simulations.formats import NOTHING, direction, format_count, format_figure, format_seconds

REFRESHES_PER_SECOND = 4
SECONDS_PER_LINE = 1.0
TREND_WIDTH = 24
BLOCKS = "▁▂▃▄▅▆▇█"

Line = dict[str, Any]  # a round's line of metrics.jsonl


class Listener(Protocol):
    """What is told of every round."""

    def on_round(self, line: Line) -> None:
        """Take one round's line."""


@contextmanager
def show_progress(
    experiment: Experiment, console: Console, *, quiet: bool = False
) -> Iterator[Listener]:
    """Show a run's rounds as they come.

    Args:
        experiment: names the tasks, their metrics and the number of rounds.
        console: where to, usually stderr; a live view where it is a terminal.
        quiet: show warnings only.
    """
    with _warnings_to(console):
        if quiet:
            yield Silence()
        elif console.is_terminal:
            view = LiveView(experiment, ascii_only=console.options.ascii_only)
            with Live(
                get_renderable=view.render,
                console=console,
                refresh_per_second=REFRESHES_PER_SECOND,
                transient=True,
            ):
                yield view
        else:
            lines = PlainLines(experiment, lambda text: console.print(text, soft_wrap=True))
            try:
                yield lines
            finally:
                lines.finish()


class Silence:
    """Shows nothing."""

    def on_round(self, line: Line) -> None:
        """Pass over a round."""


class PlainLines:
    """A line per round, at most one a second, and always the last.

    Args:
        experiment: names the tasks, their metrics and the number of rounds.
        write: prints one line.
    """

    def __init__(self, experiment: Experiment, write: Callable[[Text], None]) -> None:
        self.experiment, self.write = experiment, write
        self.speed = Speed()
        self._waiting: Line | None = None
        self._figures: Line = {}  # of the last evaluation; not every round has one
        self._written = float("-inf")

    def on_round(self, line: Line) -> None:
        """Print a round, or keep it until it is time or the end."""
        self.speed.on_round(line)
        self._figures = validation_tasks(line) or self._figures
        self._waiting = line
        if time.monotonic() - self._written >= SECONDS_PER_LINE:
            self.finish()

    def finish(self) -> None:
        """Print the round that waits, if one does."""
        if self._waiting is not None:
            self.write(Text(self._describe(self._waiting)))
            self._waiting, self._written = None, time.monotonic()

    def _describe(self, line: Line) -> str:
        figures = [
            f"{task} {metric} {format_figure(self._figures.get(task, {}).get(metric))}"
            for task, metric in metrics_of(self.experiment).items()
        ]
        rounds = f"round {line['round']}/{self.experiment.federation.rounds}"
        return "  ".join([rounds, ", ".join(figures), describe_clients(line), str(self.speed)])


class LiveView:
    """Keeps what the live view shows, and draws it when asked.

    Args:
        experiment: names the tasks, their metrics and the number of rounds.
        ascii_only: the terminal has no block characters, so no trends.
    """

    def __init__(self, experiment: Experiment, *, ascii_only: bool = False) -> None:
        self.experiment, self.ascii_only = experiment, ascii_only
        self.metrics = metrics_of(experiment)
        self.speed = Speed()
        self.line: Line | None = None
        self.figures: dict[str, Line] = {}  # task -> figures of the last evaluation it was in
        self.histories: dict[str, list[float]] = {task: [] for task in experiment.tasks}

    def on_round(self, line: Line) -> None:
        """Keep a round; costs microseconds."""
        self.speed.on_round(line)
        for task, figures in validation_tasks(line).items():
            self.figures[task] = figures
            if self.metrics[task] in figures:
                self.histories[task].append(figures[self.metrics[task]])
        self.line = line

    def render(self) -> RenderableType:
        """Draw the view; called by the thread that refreshes the terminal."""
        name = Text(self.experiment.name, style="bold")
        if self.line is None:
            return Text.assemble(name, "  opening the clients' data ...")
        return Group(self._head(name, self.line), self._tasks(), *self._left_out(self.line))

    def _head(self, name: Text, line: Line) -> Table:
        done, rounds = line["round"], self.experiment.federation.rounds
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=rounds, completed=done, width=30)
        left = self.speed.seconds_for(rounds - done)
        remaining = "" if left is None else f"{format_seconds(left)} left"
        head.add_row(name, f"round {done}/{rounds}", bar, str(self.speed), remaining)
        return head

    def _tasks(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("task")
        table.add_column("metric")
        table.add_column("validation", justify="right")
        table.add_column("loss", justify="right")
        table.add_column("" if self.ascii_only else "trend")
        for task, metric in self.metrics.items():
            figures = self.figures.get(task, {})
            trend = "" if self.ascii_only else sparkline(list(self.histories[task]))
            table.add_row(
                task,
                metric if self.ascii_only else f"{metric} {direction(metric)}",
                Text(format_figure(figures.get(metric)), style="bold"),
                format_figure(figures.get("loss")),
                Text(trend, style="cyan"),
            )
        return table

    def _left_out(self, line: Line) -> list[Text]:
        """Say who answered, and name the first few who were left out."""
        reasons = line["clients"]["left-out"]
        shown = [f"{name}: {why}" for name, why in list(reasons.items())[:3]]
        if len(reasons) > len(shown):
            shown.append(f"and {len(reasons) - len(shown)} more")
        lines = [Text(f"  left out: {why}", style="yellow", overflow="ellipsis") for why in shown]
        return [Text(describe_clients(line), style="dim"), *lines]


class Speed:
    """Rounds per second over the last rounds; prints as such."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=50)
        self._first_s = 0.0

    def on_round(self, line: Line) -> None:
        """Note that a round is done."""
        self._arrivals.append(time.monotonic())
        self._first_s = line["time_s"]

    def seconds_for(self, rounds: int) -> float | None:
        """Expect how long so many rounds will take; None before the first is done."""
        if not self._arrivals:
            return None
        steps = len(self._arrivals) - 1
        each = (self._arrivals[-1] - self._arrivals[0]) / steps if steps else self._first_s
        return rounds * each

    def __str__(self) -> str:
        each = self.seconds_for(1)
        if each is None:
            return NOTHING
        return f"{1 / each:.1f} rounds/s" if 0 < each < 1 else f"{format_seconds(each)}/round"


def metrics_of(experiment: Experiment) -> dict[str, str]:
    """Name every task's metric."""
    return {name: task.metric_name for name, task in experiment.tasks.items()}


def validation_tasks(line: Line) -> Line:
    """Take the validation figures per task out of a round's line; {} where it has none."""
    evaluation = line["evaluation"] or {}
    tasks: Line = (evaluation.get("validation") or {}).get("tasks", {})
    return tasks


def describe_clients(line: Line) -> str:
    """Say how many clients were asked and answered."""
    clients, lost = line["clients"], len(line.get("lost-attempts", ()))
    said = f"{clients['answered']} of {format_count(clients['asked'], 'client')} answered"
    if lost:
        said += f", attempt {lost + 1}"
    return f"{said}, round skipped" if line.get("skipped") else said


def sparkline(values: list[float], width: int = TREND_WIDTH) -> str:
    """Draw a series as blocks from its lowest to its highest value; NaN is a blank.

    >>> sparkline([0.0, 1.0, 2.0, float("nan"), 7.0])
    '▁▂▃ █'
    """
    step = max(len(values) / width, 1.0)
    count = min(len(values), width)
    # Each block is the last value of its share of the series, so that the end is the present.
    picked = [values[min(round((i + 1) * step), len(values)) - 1] for i in range(count)]
    finite = [value for value in picked if abs(value) < float("inf")]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    return "".join(
        BLOCKS[int((value - low) / span * 7.999) if span else 0]
        if abs(value) < float("inf")
        else " "
        for value in picked
    )


class _Once(logging.Filter):
    """Lets a message pass once: a client that fails in every round is named once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Pass a message that was not seen yet."""
        message = record.getMessage()
        is_new = message not in self.seen
        self.seen.add(message)
        return is_new


@contextmanager
def _warnings_to(console: Console) -> Iterator[None]:
    """Print the project's warnings above the live view while it is shown."""
    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    handler.addFilter(_Once())
    log = logging.getLogger("fedmtl")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
