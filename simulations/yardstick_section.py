"""The report's part on what training the tasks together gained: each held against it alone."""

from html import escape
from typing import Any

from simulations.charts import Chart, is_figure, nth_style, shorten
from simulations.formats import direction, format_figure, format_gain
from simulations.gains import READ_AT
from simulations.page_parts import Charts, card, note, table
from simulations.run_record import Figures, RunRecord, read_beside

FILE = "yardstick.json"  # in the run folder, as `simulations.yardstick` writes it
KEYS = frozenset({"fingerprint", "metrics", "run", "yardsticks"})
LABEL = 18  # letters of a task's name beside its bar


def make_gains(record: RunRecord, collected: Charts) -> str:
    """Show each task's gain over training it alone; a line on how to get it where it is missing.

    Raises:
        CheckpointError: yardstick.json cannot be read.
    """
    if record.results is None or len(record.experiment.tasks) < 2:
        return ""
    found = read_yardstick(record)
    if found is None:
        text = (
            "What each task gains by being trained with the others is shown here once fedmtl "
            f"yardstick {record.path} has trained each alone."
        )
        return card(note(text))
    about = (
        "Gain: (run - yardstick) / |yardstick|, with the sign turned where lower is better; "
        "Delta-m is the mean over tasks (Maninis et al. 2019, eq. 4). A yardstick near 0, as an R2 "
        f"may be, makes it large. {READ_AT} One seed: small gains may be chance."
    )
    if any(record.experiment.privacy.levels):
        about += (
            " The run's epsilon does not cover the yardsticks: each was trained on the same rows, "
            "with a budget of its own."
        )
    figure = collected.figure(gains_chart(found))
    return card(figure) + card(gains_table(found)) + note(about)


def read_yardstick(record: RunRecord) -> Figures | None:
    """Read what `fedmtl yardstick` left in the run folder; None where there is nothing of this run.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return read_beside(record, FILE, KEYS, "fedmtl yardstick")


def gains_chart(found: Figures) -> Chart | None:
    """Draw every task's gain, a bar for each yardstick; None where none is known."""
    names = list(found["metrics"])[::-1]  # the first on top
    traces = []
    for number, (yardstick, own) in enumerate(found["yardsticks"].items()):
        gains = [own["gains"][name] for name in names]
        if any(map(is_figure, gains)):
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": f"against {yardstick}",
                    "x": [gain if is_figure(gain) else None for gain in gains],
                    "y": [escape(shorten(name, LABEL)) for name in names],
                    "marker": {"color": nth_style(number)["colour"]},
                    "hovertemplate": "%{y} %{x:+.2f}%<extra></extra>",
                }
            )
    if not traces:
        return None
    return Chart(
        title="Gain over single-task training ↑",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "per cent of the yardstick"}, "ticksuffix": "%"},
            "yaxis": {"type": "category"},
            "hovermode": "closest",
            "bargap": 0.35,
            "showlegend": True,
            "shapes": [_at_zero()],
        },
        height=120 + (26 + 12 * len(traces)) * len(names),
        note="Right of the line, the task is better off among the others than alone.",
    )


def gains_table(found: Figures) -> str:
    """Write the numbers: each gain, which a phone shows without scrolling, then what it is of."""
    yardsticks = found["yardsticks"]
    rows = []
    for task, metric in found["metrics"].items():
        gains = [format_gain(own["gains"][task]) for own in yardsticks.values()]
        alone = [format_figure(own["tasks"][task]) for own in yardsticks.values()]
        together = format_figure(found["run"][task])
        rows.append([escape(task), f"{metric} {direction(metric)}", *gains, together, *alone])
    means = [f"<strong>{format_gain(own['delta-m'])}</strong>" for own in yardsticks.values()]
    last = ["Delta-m", "", *means, *[""] * (1 + len(yardsticks))]
    over = [f"gain, {name.removeprefix('single-task ')}" for name in yardsticks]
    return table(["task", "metric", *over, "run", *yardsticks], [*rows, last], words=2)


def _at_zero() -> dict[str, Any]:
    line = {"color": "$muted", "width": 1.5}
    return {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": line}
