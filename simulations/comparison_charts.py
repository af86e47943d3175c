"""The charts of a comparison: test figures with every seed's, and learning curves."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import fmean

from simulations.charts import (
    HEIGHT,
    Chart,
    Trace,
    axes,
    curve,
    is_figure,
    nth_style,
    reference_line,
    shorten,
    thin,
    unzip,
)
from simulations.comparison_table import Column
from simulations.run_record import Figures, RunRecord

LABEL_WIDTH = 22  # characters of a line beside a chart; more would fill a phone
LEGEND_WIDTH = 48


def figures_chart(column: Column, curves: Sequence[str], yardstick: str | None) -> Chart:
    """Draw a contender's mean with its deviation, and each seed's figure.

    Args:
        column: the figures.
        curves: contenders in the order of their colours in `curves_chart`; others are grey.
        yardstick: the contender whose mean is a line across the chart, if any.
    """
    names = list(column.spreads)
    means, seeds = dots(column, names, curves)
    base = column.spreads[yardstick]["mean"] if yardstick else None
    return Chart(
        title=f"{column.heading}: {column.unit}",
        traces=[seeds, means],
        layout={
            "xaxis": {"title": {"text": column.unit}},
            "yaxis": {
                "tickvals": list(range(1, len(names) + 1)),
                "ticktext": [label(name) for name in reversed(names)],
                "range": [0.4, len(names) + 0.6],
            },
            **reference_line(base, "x"),
            "hovermode": "closest",
            "showlegend": False,
        },
        height=80 + 44 * len(names),
        note="Large: mean and sample standard deviation; small: a seed each."
        + (f" Dashed: {yardstick}." if is_figure(base) else ""),
    )


def dots(column: Column, names: Sequence[str], curves: Sequence[str]) -> tuple[Trace, Trace]:
    """Place the means, and the seeds' figures, of the contenders from the top down."""
    heights = {name: len(names) - place for place, name in enumerate(names)}
    spreads = column.spreads
    shown = [name for name in names if is_figure(spreads[name]["mean"])]
    each = [(n, v) for n in names for v in spreads[n]["seeds"] if is_figure(v)]

    def trace(points: Sequence[tuple[str, float]], size: int, opacity: float) -> Trace:
        return {
            "x": [value for _, value in points],
            "y": [heights[name] for name, _ in points],
            "text": [escape(name) for name, _ in points],
            "type": "scatter",
            "mode": "markers",
            "marker": {
                "color": [colour_of(name, curves) for name, _ in points],
                "size": size,
                "opacity": opacity,
            },
            "hovertemplate": "%{text}<br>%{x:.4g}<extra></extra>",
        }

    means = trace([(name, spreads[name]["mean"]) for name in shown], 11, 1.0)
    deviations = [spreads[name]["deviation"] for name in shown]
    means["error_x"] = {"type": "data", "array": deviations, "color": "$muted", "thickness": 1.5}
    return means, trace(each, 6, 0.5)


def curves_chart(
    title: str,
    records: Mapping[str, Sequence[RunRecord]],
    figure: Callable[[Figures], float | None],
) -> Chart:
    """Draw a figure of the evaluations over rounds, its mean over the seeds of a contender.

    Args:
        title: what it is.
        records: contender -> its runs, a seed each.
        figure: takes the figure out of an evaluation.
    """
    traces = [
        curve(shorten(name, LEGEND_WIDTH), *unzip(thin(mean_curve(runs, figure))), **nth_style(i))
        for i, (name, runs) in enumerate(records.items())
    ]
    height = HEIGHT + 20 * max(0, len(traces) - 2)  # the legend's lines
    return Chart(title, traces, axes("rounds the trunk was trained"), height)


def mean_curve(
    runs: Sequence[RunRecord], figure: Callable[[Figures], float | None]
) -> list[tuple[int, float]]:
    """Average a figure over seeds, at the rounds where all of them have it."""
    by_seed = [
        {e["trunk-round"]: value for e in run.evaluations if is_figure(value := figure(e))}
        for run in runs
    ]
    rounds = set.intersection(*map(set, by_seed))
    return [(number, fmean(own[number] for own in by_seed)) for number in sorted(rounds)]


def colour_of(name: str, curves: Sequence[str]) -> str:
    """Choose the colour of a contender: that of its curve, or grey."""
    return nth_style(curves.index(name))["colour"] if name in curves else "$muted"


def label(name: str) -> str:
    """Break a name into short lines, as HTML.

    >>> label("loss.weighting=uncertainty, training.lr=0.1")
    'loss.weighting=<br>uncertainty,<br>training.lr=0.1'
    """
    lines = textwrap.wrap(name.replace("=", "= "), LABEL_WIDTH)
    return "<br>".join(escape(line.replace("= ", "=")) for line in lines)
