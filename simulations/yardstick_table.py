"""Gains over single-task training, on the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.formats import direction, format_figure, format_gain
from simulations.gains import READ_AT


def print_yardstick(found: Mapping[str, Any], console: Console) -> None:
    """Print what yardstick.json holds, a row for each task."""
    table = Table(title="Trained together against alone, on test rows", caption=READ_AT)
    for heading in ("task", "metric"):
        table.add_column(heading)
    headings = ["run"]
    for name in found["yardsticks"]:
        headings += [name.replace("single-task", "alone,"), "gain"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for task, metric in found["metrics"].items():
        cells = [format_figure(found["run"][task])]
        for own in found["yardsticks"].values():
            cells += [format_figure(own["tasks"][task]), format_gain(own["gains"][task])]
        table.add_row(task, f"{metric} {direction(metric)}", *cells)
    table.add_section()
    last: list[str | Text] = [""]
    for own in found["yardsticks"].values():
        last += ["", Text(format_gain(own["delta-m"]), style="bold")]
    table.add_row("Delta-m", "", *last)
    console.print(table)
