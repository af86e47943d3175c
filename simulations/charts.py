"""The report's charts as Plotly figures: plain dictionaries, drawn by the page's own script.

Colours are names such as ``$c0`` or ``$muted`` that the page replaces by those of its light or dark
theme. Text of the user's is escaped here, because Plotly reads simple HTML.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeGuard, TypeVar

from simulations.formats import direction, format_figure
from simulations.run_record import Figures, RunRecord, task_figures

MOST_POINTS = 1000  # per curve; more are thinned out
MOST_NAMED_CLIENTS = 24  # more are drawn by rank, without their names
COLOURS = 8
HEIGHT = 260

Trace = dict[str, Any]
Point = TypeVar("Point")


@dataclass(frozen=True)
class Chart:
    """One chart of the page.

    Attributes:
        title: what it shows.
        traces: Plotly's `data`.
        layout: what differs from the page's common layout.
        height: in pixels.
        note: a line below it.
        about: the task or part it belongs to, where the title does not say: a figure that is saved
            leaves the heading above it behind.
    """

    title: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = HEIGHT
    note: str = ""
    about: str = ""


def metric_chart(record: RunRecord, task: str) -> Chart:
    """Draw one task's validation metric over rounds, with the spread over clients as a band."""
    metric = record.experiment.tasks[task].metric_name
    points = [
        (evaluation["trunk-round"], figures[metric], figures.get("spread") or {})
        for evaluation in record.evaluations
        if is_figure((figures := task_figures(evaluation, "validation", task)).get(metric))
    ]
    points = thin(points)
    whole = curve("all rows", [x for x, _, _ in points], [y for _, y, _ in points], "$c0")
    banded = [(x, spread) for x, _, spread in points if is_figure(spread.get("p10"))]
    note = (
        "On validation rows. Four fifths of the clients lie in the band, from p10 to p90; the "
        "worst tenth lies beyond the dashed line."
    )
    return Chart(
        title=f"Validation {metric} {direction(metric)}",
        traces=[*_spread_traces(banded, metric), whole],
        layout=axes("rounds the trunk was trained"),
        note=note if banded else "",
        about=task,
    )


def _spread_traces(banded: Sequence[tuple[int, Figures]], metric: str) -> list[Trace]:
    """Draw p10 to p90 as a band, the median client, and where the worst tenth begins."""
    if not banded:
        return []
    at = [x for x, _ in banded]
    levels = {k: [spread[k] for _, spread in banded] for k in ("p10", "median", "p90")}
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "x": at}
    worst = "p90" if direction(metric) == "↓" else "p10"
    return [
        {**edge, "y": levels["p10"], "name": "clients, p10", "showlegend": False},
        {
            **edge,
            "y": levels["p90"],
            "fill": "tonexty",
            "fillcolor": "$c0-soft",
            "name": "p10 to p90",
            "meta": {"series": "clients, p90"},
        },
        curve("median client", at, levels["median"], "$c4", "dot"),
        curve("worst tenth", at, levels[worst], "$c1", "dash"),
    ]


def loss_chart(record: RunRecord, task: str) -> Chart:
    """Draw one task's training and validation loss over rounds."""
    trained = [
        (line["round"], figures["loss"])
        for line in record.rounds
        if is_figure((figures := line["train"]["tasks"].get(task, {})).get("loss"))
    ]
    validated = [
        (evaluation["trunk-round"], figures["loss"])
        for evaluation in record.evaluations
        if is_figure((figures := task_figures(evaluation, "validation", task)).get("loss"))
    ]
    return Chart(
        title="Loss ↓",
        traces=[
            curve("training", *unzip(thin(trained)), "$c1"),
            curve("validation", *unzip(thin(validated)), "$c0"),
        ],
        layout=axes("round"),
        note="Mean over labelled rows: while training, and on validation rows before the round.",
        about=task,
    )


def rate_chart(record: RunRecord) -> Chart | None:
    """Draw the learning rate; None where it never changes."""
    points = [(line["round"], lr) for line in record.rounds if is_figure(lr := line.get("lr"))]
    if len({lr for _, lr in points}) <= 1:
        return None
    return Chart(
        title="Learning rate",
        traces=[curve("lr", *unzip(thin(points)), "$c2")],
        layout=axes("round", zero=True),
        note="What a round's first local step is taken with, by training.schedule.",
    )


def clients_chart(record: RunRecord, task: str) -> Chart | None:
    """Draw one task's final test metric of every client; None where no client has one."""
    metric = record.experiment.tasks[task].metric_name
    overall = task_figures(record.final, "test", task).get(metric)
    title = f"{task}: test {metric} {direction(metric)}"
    return rank_chart(title, metric, client_figures(record, task, "test"), overall)


def rank_chart(
    title: str, metric: str, figures: Mapping[str, float], overall: float | None
) -> Chart | None:
    """Draw a metric of every client, from worst to best; None where no client has one.

    Args:
        title: of the chart.
        metric: its name.
        figures: client -> its figure.
        overall: the federation's.
    """
    if not figures:
        return None
    ordered = sorted(figures.items(), key=lambda item: item[1], reverse=direction(metric) == "↓")
    few = len(ordered) <= MOST_NAMED_CLIENTS
    values, places = [value for _, value in ordered], list(range(1, len(ordered) + 1))
    names = [escape(name) for name, _ in ordered]
    along, across = ("x", "y") if few else ("y", "x")
    dots = {
        along: values,
        across: places,
        "mode": "markers",
        "type": "scatter",
        "marker": {"color": "$c0", "size": dot_size(len(ordered)), "opacity": 0.8},
        "text": names,
        "meta": {"text": "client"},
        "hovertemplate": f"%{{text}}<br>{metric} %{{{along}:.4g}}<extra></extra>",
    }
    ranks: dict[str, Any] = {
        "title": {"text": "clients, from worst to best"},
        "rangemode": "normal",
    }
    if few:
        labels = [escape(shorten(name)) for name, _ in ordered]
        ranks = {"tickvals": places, "ticktext": labels, "range": [0.3, len(ordered) + 0.7]}
    layout = {f"{along}axis": {"title": {"text": metric}}, f"{across}axis": ranks}
    return Chart(
        title=title,
        traces=[dots],
        layout={**layout, **reference_line(overall, along), "hovermode": "closest"},
        height=90 + 24 * len(ordered) if few else HEIGHT,
        note=f"A dot is a client; the dashed line is the federation, {format_figure(overall)}.",
    )


def weights_chart(record: RunRecord) -> Chart | None:
    """Draw the tasks' weights in the loss; None where they never change."""
    tasks = list(record.experiment.tasks)
    series = {t: [line["weights"].get(t) for line in record.rounds] for t in tasks}
    if all(len(set(weights)) <= 1 for weights in series.values()):
        return None
    return _task_chart(record, "Weight in the loss", series, "Means over the round's steps.")


def gradient_charts(record: RunRecord) -> list[Chart]:
    """Draw the norms of the tasks' gradients, and how hard each task pulls; none where unknown."""
    drawn = {
        "norm": ("Gradient norm", "Of each task's loss on the shared trunk or its last layer."),
        "pull": ("Pull", "The gradient's norm times the task's weight; balanced tasks pull alike."),
        "cosine": (
            "Gradient agreement",
            "The mean cosine of a task's gradient on the trunk with those of the other tasks in "
            "the batch; below the dashed line it conflicts with them (Yu et al. 2020, def. 1).",
        ),
    }
    charts = []
    for name, (title, note) in drawn.items():
        series = {
            task: [line["train"]["tasks"].get(task, {}).get(name) for line in record.rounds]
            for task in record.experiment.tasks
        }
        if any(value is not None for values in series.values() for value in values):
            charts.append(_task_chart(record, title, series, note))
            if name == "cosine":
                charts[-1].layout.update({**axes("round"), **reference_line(0.0, "y")})
    return charts


def _task_chart(
    record: RunRecord, title: str, series: Mapping[str, Sequence[float | None]], note: str
) -> Chart:
    """Draw a curve per task over rounds."""
    return Chart(
        title=title,
        traces=[
            curve(
                task,
                *unzip(thin(list(zip(rounds_of(record), values, strict=True)))),
                f"$c{number % COLOURS}",
                dash=("solid", "dash", "dot")[number // COLOURS % 3],
            )
            for number, (task, values) in enumerate(series.items())
        ],
        layout=axes("round", zero=True),
        note=note,
    )


def traffic_chart(record: RunRecord) -> Chart:
    """Draw the payload of every round."""
    traces = []
    for name, key, colour in (
        ("sent to clients", "sent-bytes", "$c0"),
        ("received", "received-bytes", "$c1"),
    ):
        points = [(line["round"], line["traffic"][key]) for line in record.rounds]
        trace = curve(name, *unzip(thin(points)), colour)
        traces.append({**trace, "hovertemplate": "%{y:.3s}B"})
    layout = axes("round", zero=True)
    layout["yaxis"] |= {"tickformat": "~s", "ticksuffix": "B"}
    note = "Payload of all messages of a round, without the transport's own bytes."
    return Chart("Traffic per round", traces, layout, note=note)


def time_chart(record: RunRecord) -> Chart:
    """Draw how long every round took."""
    points = [(line["round"], line["time_s"]) for line in record.rounds]
    trace = curve("time", *unzip(thin(points)), "$c2")
    layout = axes("round", zero=True)
    layout["yaxis"] |= {"tickformat": "~s", "ticksuffix": "s"}
    note = "From the first message of a round to its line in metrics.jsonl."
    return Chart("Time per round", [{**trace, "hovertemplate": "%{y:.3s}s"}], layout, note=note)


def participation_chart(record: RunRecord) -> Chart | None:
    """Draw how many clients were asked and answered; None where all always answered."""
    asked = [(line["round"], line["clients"]["asked"]) for line in record.rounds]
    answered = [(line["round"], line["clients"]["answered"]) for line in record.rounds]
    if asked == answered:
        return None
    return Chart(
        "Clients per round",
        [
            curve("asked", *unzip(thin(asked)), "$muted", dash="dot"),
            curve("answered", *unzip(thin(answered)), "$c0"),
        ],
        axes("round", zero=True),
    )


def client_figures(record: RunRecord, task: str, split: str) -> dict[str, float]:
    """Take one task's metric of every client that has one: client name -> figure."""
    metric = record.experiment.tasks[task].metric_name
    clients: Figures = (record.results or {}).get("clients", {})
    figures = {
        name: client["tasks"].get(task, {}).get(split, {}).get(metric)
        for name, client in clients.items()
    }
    return {name: value for name, value in figures.items() if is_figure(value)}


def curve(name: str, x: Sequence[Any], y: Sequence[Any], colour: str, dash: str = "solid") -> Trace:
    """Make a line; a series of one point is drawn as a dot, else it could not be seen."""
    return {
        "name": escape(name),
        "x": x,
        "y": y,
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {"color": colour},
        "hovertemplate": "%{y:.4g}",
    }


def nth_style(number: int) -> dict[str, str]:
    """Choose colour and dash of one of many curves: 24 that differ.

    >>> nth_style(0), nth_style(9)
    ({'colour': '$c0', 'dash': 'solid'}, {'colour': '$c1', 'dash': 'dash'})
    """
    return {
        "colour": f"$c{number % COLOURS}",
        "dash": ("solid", "dash", "dot")[number // COLOURS % 3],
    }


def axes(across: str, *, zero: bool = False) -> dict[str, Any]:
    """Lay out a chart over rounds."""
    return {
        "xaxis": {"title": {"text": across}},
        "yaxis": {"rangemode": "tozero" if zero else "normal"},
    }


def reference_line(value: float | None, axis: str) -> dict[str, Any]:
    """Draw a dashed line across the chart where an axis has this value."""
    if not is_figure(value):
        return {}
    other = "y" if axis == "x" else "x"
    line = {
        "type": "line",
        f"{axis}0": value,
        f"{axis}1": value,
        f"{other}0": 0,
        f"{other}1": 1,
        f"{other}ref": "paper",
        "line": {"color": "$muted", "width": 1.5, "dash": "dash"},
    }
    return {"shapes": [line]}


def is_figure(value: float | None) -> TypeGuard[float]:
    """Tell a number from a figure that does not exist."""
    return value is not None and math.isfinite(value)


def dot_size(count: int) -> float:
    """Make dots smaller where there are many.

    >>> [dot_size(n) for n in (2, 100, 1000)]
    [10, 7, 4]
    """
    return 10 if count <= MOST_NAMED_CLIENTS else 7 if count <= 200 else 4


def shorten(name: str, longest: int = 18) -> str:
    """Cut a name for an axis.

    >>> shorten("hospital-in-a-faraway-place")
    'hospital-in-a-f...'
    """
    return name if len(name) <= longest else f"{name[: longest - 3]}..."


def thin(points: Sequence[Point]) -> list[Point]:
    """Keep evenly spaced points, the first and the last among them.

    >>> kept = thin(range(5000))
    >>> len(kept), kept[0], kept[-1]
    (1000, 0, 4999)
    """
    if len(points) <= MOST_POINTS:
        return list(points)
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(i * step)] for i in range(MOST_POINTS)]


def unzip(points: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """Split pairs into two lists.

    >>> unzip([(1, "a"), (2, "b")])
    ([1, 2], ['a', 'b'])
    """
    return [x for x, _ in points], [y for _, y in points]


def rounds_of(record: RunRecord) -> list[int]:
    """List the numbers of the rounds that were done."""
    return [line["round"] for line in record.rounds]
