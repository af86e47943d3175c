"""The table of a comparison's newcomers: by number of rows, on the trunk and alone.

Without variants each contender has a row; with variants each variant has one, the heads that were
fitted on its trunk, and Delta-m says what they gain over training from scratch by its settings.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.personalise import HEADS
from simulations.comparison_table import (
    Column,
    Comparison,
    describe_gain,
    describe_seeds,
    name_cells,
    name_headings,
)
from simulations.formats import LOWER_IS_BETTER, direction, format_count

TITLE = "Newcomers"


@dataclass(frozen=True)
class Line:
    """One line of figures.

    Attributes:
        label: number of training rows, or "all".
        names: cells that name it.
        figures: its tasks and Delta-m, as in comparison.json.
    """

    label: str
    names: list[str]
    figures: Mapping[str, Any]


def lines_of(comparison: Comparison) -> dict[str, Line]:
    """List the lines under names of their own, number of rows by number of rows; {} without any."""
    newcomers = comparison.get("newcomers")
    if not newcomers:
        return {}
    lines: list[Line] = []
    trunks = newcomers["trunks"]
    for label in next(iter(trunks.values()))["rows"]:
        for trunk, summary in trunks.items():
            contenders = summary["rows"][label]["contenders"]
            if "vary" in comparison:
                lines.append(Line(label, name_cells(comparison, trunk), contenders[HEADS]))
                continue
            lines += [
                Line(label, [newcomers["contenders"][name]], own)
                for name, own in contenders.items()
            ]
    return {str(place): line for place, line in enumerate(lines)}


def newcomer_headings(comparison: Comparison) -> list[str]:
    """Head the columns that name a line."""
    return ["rows", *(name_headings(comparison) if "vary" in comparison else ["fitted"])]


def newcomer_columns(comparison: Comparison, lines: Mapping[str, Line]) -> Iterator[Column]:
    """List the columns of figures: the tasks, and the gain over training from scratch."""
    for task, metric in comparison["metrics"].items():
        spreads = {name: line.figures["tasks"][task] for name, line in lines.items()}
        unit = f"{metric} {direction(metric)}"
        yield Column(task, unit, spreads, describe_seeds, metric in LOWER_IS_BETTER)
    gains = {name: line.figures["delta-m"] for name, line in lines.items()}
    yield Column("over scratch", "Delta-m % ↑", gains, describe_gain)


def newcomer_cells(comparison: Comparison) -> Iterator[tuple[list[str], list[tuple[str, bool]]]]:
    """Write the lines: cells that name it, and cells of figures, each with whether it is best."""
    lines, seeds = lines_of(comparison), len(comparison["seeds"])
    columns = list(newcomer_columns(comparison, lines)) if lines else []
    for name, line in lines.items():
        rivals = [other for other, own in lines.items() if own.label == line.label]
        cells = [(column.cell(name, seeds), name in column.best(rivals)) for column in columns]
        yield [line.label, *line.names], cells


def newcomer_notes(comparison: Comparison) -> Iterator[str]:
    """Say what the figures are, a sentence each."""
    summaries = comparison["newcomers"]["trunks"].values()
    first = next(iter(summaries))
    held_out = "/".join(dict.fromkeys(str(len(names)) for names in first["clients"].values()))
    with_rows = ", ".join(
        f"{label}: {'/'.join(dict.fromkeys(map(str, own['clients'])))}"
        for label, own in first["rows"].items()
    )
    yield (
        f"{held_out} clients a seed took no part in any training; figures are over all of their "
        f"test rows. Clients with so many training rows: {with_rows}."
    )
    what = " Shown are heads on each variant's frozen trunk." if "vary" in comparison else ""
    yield (
        "All contenders alike: the same rows, batches, settings and steps, read after the epoch "
        "of lowest loss on the client's validation rows; the trunk is that with which the run "
        f"ended.{what} Delta-m is the gain over trunk and heads from scratch on the same rows."
    )
    fits = sum(summary["fits"] for summary in summaries)
    late = {
        line: sum(summary["at-limit"][name] for summary in summaries)
        for name, line in comparison["newcomers"]["contenders"].items()
    }
    if any(late.values()):
        counts = ", ".join(f"{count} ({line})" for line, count in late.items())
        yield f"Of {fits} fits each, best in the last epoch allowed: {counts}."
    left_out = {c for s in summaries for own in s["left-out"].values() for c in own}
    if left_out:
        yield (
            f"{format_count(len(left_out), 'newcomer')} could not be fitted; comparison.json says "
            "why."
        )


def print_newcomers(comparison: Comparison, console: Console) -> None:
    """Print the table; nothing where no client was held out."""
    if "newcomers" not in comparison:
        return
    table = Table(title=f"{comparison['experiment']}: newcomers, test figures")
    headings = newcomer_headings(comparison)
    for place, heading in enumerate(headings):
        table.add_column(
            heading.replace(".", "\n."), justify="left" if place else "right", overflow="fold"
        )
    for column in newcomer_columns(comparison, lines_of(comparison)):
        table.add_column(f"{column.heading}\n{column.unit}", justify="right")
    before = ""
    for names, cells in newcomer_cells(comparison):
        if before not in ("", names[0]):
            table.add_section()
        before = names[0]
        figures = [Text(cell, style="bold" if best else "") for cell, best in cells]
        table.add_row(*map(Text, names), *figures)
    console.print(table)
    for note in newcomer_notes(comparison):
        console.print(note, highlight=False)
