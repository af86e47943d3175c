"""The table that `fedmtl runs` prints."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.formats import format_count
from simulations.run_list import HEADINGS, RunRow

NUMBERS = frozenset({"rounds", "seed", "time", "epsilon"})
WIDTH = 160  # of a pipe or a file, which has none of its own


def print_runs(rows: Sequence[RunRow], found: int) -> None:
    """Print runs on stdout.

    Args:
        rows: those to show.
        found: how many there are.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    table = Table()
    for heading in HEADINGS:
        table.add_column(
            heading, justify="right" if heading in NUMBERS else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(Text, row.cells()))
    if rows:
        console.print(table)
    shown = "" if len(rows) == found else f"{len(rows):,} of "
    console.print(f"{shown}{format_count(found, 'run')}", highlight=False)
