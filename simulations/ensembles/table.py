"""The table of an ensemble: per task and split, members' mean and best against their average."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.ensembles.rows import JUDGED
from simulations.formats import NOTHING, direction, format_count, format_figure

HOW = {
    "runs": "each run with its trunk and the heads of the row's client",
    "clients": "all clients' heads on one trunk, whoever holds the row",
    "snapshots": "the run's trunk and heads after each of these rounds",
}
COLUMNS = {  # figures, and gains with what they are over
    "runs": (("mean", "best", "ensemble"), {"gain": "over\nmean", "gain-over-best": "over\nbest"}),
    "clients": (("mean", "own", "ensemble"), {"gain": "over\nmean", "gain-over-own": "over\nown"}),
    "snapshots": (
        ("last", "ensemble", "one-model"),
        {"gain-over-last": "over\nlast", "one-model-over-last": "one over\nlast"},
    ),
}
READ = {
    "runs": "The best member is the best on these very rows, known afterwards only.",
    "clients": "Own is what the row's own client says, which is what a run measures.",
    "snapshots": "Last is the run's end, which is what a run measures; one model, the mean of all "
    "members' parameters, costs no more than the last.",
}
SHORT = {"validation": "valid.", "test": "test"}  # 80 columns are few
WEIGHED = {
    "equal": "all alike",
    "validation": "by the inverse of their validation losses, task by task, so that the "
    "validation figures of the ensemble flatter it",
}


def print_ensemble(figures: Mapping[str, Any], console: Console) -> None:
    """Print a row per task and split, and what the figures mean."""
    plain, gains = COLUMNS[figures["by"]]
    table = Table(title=f"{figures['experiment']}: ensemble over {figures['by']}")
    table.add_column("task")
    table.add_column("rows")
    for name in (*(key.replace("-", "\n") for key in plain), *gains.values()):
        table.add_column(name, justify="right")
    for task, found in figures["tasks"].items():
        named = [task, f"{found['metric']} {direction(found['metric'])}"]
        for split, name in zip([s for s in JUDGED if s in found], named, strict=False):
            own = found[split]
            cells = [format_figure(own[key]) for key in plain]
            cells += [format_gain(own[key]) for key in gains]
            table.add_row(name, f"{own['rows']:,} {SHORT[split]}", *cells)
        table.add_section()
    console.print(table)
    for note in notes_of(figures):
        console.print(Text(note))


def format_gain(gain: float) -> str:
    """Write a gain with its sign.

    >>> [format_gain(g) for g in (0.01234, -2.0, 0.0, math.nan)]
    ['+0.0123', '-2.00', '0', '-']
    """
    if not math.isfinite(gain):
        return NOTHING
    return f"{gain:+#.3g}" if gain else "0"


def notes_of(figures: Mapping[str, Any]) -> list[str]:
    """Say what voted and how to read the table, a sentence each."""
    most = max(len(found["members"]) for found in figures["tasks"].values())
    return [
        f"{format_count(most, 'member')}: {HOW[figures['by']]}; averaged "
        f"{WEIGHED[figures['weights']]}.",
        "Probabilities are averaged, and values in the target's own unit. A gain is in the "
        "metric's unit, and above 0 where the ensemble is better.",
        READ[figures["by"]],
        *(f"{note[:1].upper()}{note[1:]}." for note in figures["notes"]),
    ]
