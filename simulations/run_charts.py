"""Charts that lay the rounds of several runs over each other."""

from collections.abc import Callable, Mapping

from simulations.charts import (
    HEIGHT,
    Chart,
    axes,
    curve,
    is_figure,
    nth_style,
    shorten,
    thin,
    unzip,
)
from simulations.comparison_charts import LEGEND_WIDTH
from simulations.run_record import Figures, RunRecord

Runs = Mapping[str, RunRecord]


def round_curves(
    title: str, runs: Runs, figure: Callable[[Figures], float | None], unit: str = ""
) -> Chart | None:
    """Draw a figure of every round's line, a curve for each run in the colour it has everywhere.

    Args:
        title: what it is.
        runs: name -> run.
        figure: takes the figure out of a line of metrics.jsonl.
        unit: "s" or "B", written after numbers with SI prefixes.

    Returns:
        None where no run has the figure.
    """
    traces = []
    for number, (name, run) in enumerate(runs.items()):
        points = [(line["round"], v) for line in run.rounds if is_figure(v := figure(line))]
        if points:
            trace = curve(shorten(name, LEGEND_WIDTH), *unzip(thin(points)), **nth_style(number))
            traces.append({**trace, "hovertemplate": f"%{{y:.3s}}{unit}"} if unit else trace)
    if not traces:
        return None
    layout = {**axes("round", zero=True), "showlegend": True}  # one curve needs its name too
    if unit:
        layout["yaxis"] |= {"tickformat": "~s", "ticksuffix": unit}
    return Chart(title, traces, layout, HEIGHT + 20 * max(0, len(traces) - 2))


def epsilon_curves(runs: Runs, unit: str) -> Chart | None:
    """Draw what every run has cost a unit, "client" or "example"; None where none has one."""

    def epsilon(line: Figures) -> float | None:
        figure: float | None = line.get("privacy", {}).get(unit, {}).get("epsilon")
        return figure

    return round_curves(f"Epsilon so far, {unit} level ↓", runs, epsilon)
