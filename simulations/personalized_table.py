"""The table of a newcomer: by number of rows, the heads on the trunk and what they compete with."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.comparison_table import Column, describe_seeds
from simulations.formats import LOWER_IS_BETTER, direction, format_count
from simulations.gains import spread


def print_personalised(figures: Mapping[str, Any], console: Console) -> None:
    """Print a row per contender and number of rows; the best of each number is bold."""
    rows = figures["rows"]
    tested = format_count(rows["test"], "test row")
    table = Table(title=f"{figures['experiment']}: newcomer '{figures['client']}', {tested}")
    table.add_column("rows", justify="right")
    table.add_column("fitted")
    for task, metric in figures["metrics"].items():
        table.add_column(f"{task}\n{metric} {direction(metric)}", justify="right")
    table.add_column("epochs", justify="right")
    for count in dict.fromkeys(line["rows"] for line in figures["results"]):
        own = {x["contender"]: x for x in figures["results"] if x["rows"] == count}
        columns = [make_column(task, metric, own) for task, metric in figures["metrics"].items()]
        best = [column.best(list(own)) for column in columns]
        for name, line in own.items():
            cells = [
                Text(column.cell(name, 1), style="bold" if name in names else "")
                for column, names in zip(columns, best, strict=True)
            ]
            contender = Text(figures["contenders"][name])
            table.add_row(f"{count:,}", contender, *cells, str(line["epochs"]))
        table.add_section()
    console.print(table)
    for note in notes_of(figures):
        console.print(Text(note))


def make_column(task: str, metric: str, lines: Mapping[str, Mapping[str, Any]]) -> Column:
    """Make a task's column from the contenders' lines for one number of rows."""
    spreads = {
        name: spread([line["tasks"][task][metric]])
        for name, line in lines.items()
        if task in line["tasks"]
    }
    unit = f"{metric} {direction(metric)}"
    return Column(task, unit, spreads, describe_seeds, metric in LOWER_IS_BETTER)


def notes_of(figures: Mapping[str, Any]) -> list[str]:
    """Say how the contenders were made comparable, a sentence each."""
    judges, patience = figures["rows"]["validation"], figures["patience"]
    early = "" if patience is None else f", stopped after {patience} without a better one"
    chosen = (
        f"each is read after its epoch of lowest loss on the client's "
        f"{format_count(judges, 'validation row')}"
        if judges
        else "each is read after its last epoch, for the client has no validation rows"
    )
    notes = [
        f"All contenders alike: the same rows, batches and settings, at most "
        f"{format_count(figures['epochs'], 'epoch')}{early} (over fewer rows, as many more as make "
        f"as many steps); {chosen}.",
        f"The trunk is that of run {figures['run']} after round {figures['round']}.",
    ]
    late = [x for x in figures["results"] if x["epochs"] == x["epochs-limit"]]
    if judges and late:
        notes.append(
            f"{len(late)} of {len(figures['results'])} were best in the last epoch allowed: more "
            "--epochs may change them."
        )
    return [*notes, *(f"{note[:1].upper()}{note[1:]}." for note in figures["notes"])]
