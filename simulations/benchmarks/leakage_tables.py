"""Figures of `simulations.benchmarks.utility_leakage` over seeds, as tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulations.benchmarks.leakage_arms import ARMS, EXAMPLE, TASKS, Dataset
from simulations.benchmarks.leakage_trial import Outcome
from simulations.formats import NOTHING
from simulations.gains import spread

Summary = dict[str, Any]  # arm -> {"figures": name -> spread, "facts": name -> text}


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        heading: plain text.
        figure: its name.
        beside: name of what it is to be compared with, if any.
        digits: after the point.
        share: whether it is written in percent.
    """

    heading: str
    figure: str
    beside: str = ""
    digits: int = 3
    share: bool = False


USEFUL, LEAKS = "How well it predicts", "What it leaks"
PRICES = (
    Column("mean of tasks", "utility"),
    Column("epsilon per row", "epsilon/row", digits=1),
    Column("epsilon per client", "epsilon/client", digits=1),
)
LEAK_COLUMNS = (
    Column("error taken away, %", "inversion/gain", share=True, digits=0),
    Column("rows recovered, %", "inversion/recovered", share=True, digits=0),
    Column("PSNR (mean row's), dB", "inversion/psnr", "inversion/psnr-mean-row", digits=1),
    Column("labels right (prior's)", "labels/right", "labels/prior", digits=2),
    Column("tasks, AUC", "tasks/auc", digits=2),
    Column("all tasks right (base rate)", "tasks/right", "tasks/base-rate", digits=2),
    Column("members by trunk, AUC", "membership/server", digits=2),
    Column("by trunk and heads, AUC", "membership/insider", digits=2),
)


def summarise(outcomes: Mapping[str, Sequence[Outcome]]) -> Summary:
    """Put the seeds of every arm together: arm -> figures, each with mean and deviation, facts."""
    found = {}
    for arm, own in outcomes.items():
        names = [name for name in own[0].figures if all(name in one.figures for one in own)]
        found[arm] = {
            "title": ARMS[arm].title,
            "figures": {name: spread([one.figures[name] for one in own]) for name in names},
            "facts": own[0].facts,
        }
    return found


def columns_of(summary: Summary) -> dict[str, list[Column]]:
    """Choose the columns that some arm has a figure for: table -> columns."""
    names = dict.fromkeys(name for own in summary.values() for name in own["figures"])
    tasks = [Column(name.removeprefix("task/"), name) for name in names if name.startswith("task/")]
    known = {USEFUL: [*tasks, *PRICES], LEAKS: LEAK_COLUMNS}
    return {
        title: [column for column in columns if column.figure in names]
        for title, columns in known.items()
    }


def cells_of(summary: Summary, columns: Sequence[Column]) -> Iterator[list[str]]:
    """Write a line for every arm: its title, then a cell per column."""
    for own in summary.values():
        yield [own["title"], *(cell(own["figures"], column) for column in columns)]


def cell(figures: Mapping[str, Any], column: Column) -> str:
    """Write a figure, with its deviation over seeds and what it is to be compared with.

    >>> cell({"a": {"mean": 0.5, "deviation": 0.25, "seeds": [0.25, 0.75]}}, Column("A", "a"))
    '0.500 ± 0.250'
    """
    found = figures.get(column.figure)
    if found is None or not math.isfinite(found["mean"]):
        return NOTHING
    text = _write(found["mean"], column)
    if len(found["seeds"]) > 1:
        text += f" ± {_write(found['deviation'], column)}"
    beside = figures.get(column.beside)
    return f"{text} ({_write(beside['mean'], column)})" if beside else text


def _write(value: float, column: Column) -> str:
    return f"{100 * value if column.share else value:.{column.digits}f}"


def to_markdown(name: str, dataset: Dataset, summaries: Mapping[str, Summary]) -> str:
    """Write the tables of a data set, two for a scene."""
    parts = []
    for scene, summary in summaries.items():
        parts.append(f"{name}, {scene}: {dataset.scenes[scene].line}")
        for columns in columns_of(summary).values():
            headings = ["arm", *(column.heading for column in columns)]
            lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * len(columns)}"]
            lines += [f"| {' | '.join(cells)} |" for cells in cells_of(summary, columns)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def notes_of(summary: Summary) -> list[str]:
    """Say how to read a table, a sentence or two each."""
    names = {name for own in summary.values() for name in own["figures"]}
    notes = []
    if "inversion/gain" in names:
        notes += [
            "Error taken away: share of the mean row's squared error that the strongest of three "
            "gradient inversions takes away; 100 % is an exact copy, below 0 is worse than to "
            "guess the mean of other people's rows. Recovered: rows with less than a tenth of that "
            "error. The attacker knows labels, first heads and the number of rows, and which "
            "attack does better.",
            "Under secure aggregation the attack is on the sum over all clients, which is all that "
            "the server sees, and its figures are over all their rows.",
        ]
    if "labels/right" in names:
        notes.append(
            "Labels right: share of a client's labels that are counted right, mean over tasks and "
            "clients; by the heads' update where heads travel, else by a probe. A dash: no update "
            "of a single client is seen."
        )
    if f"{TASKS}/auc" in names:
        notes.append(
            "AUC of 0.5 is chance. Clients tell the server their tasks unless privacy.counts is "
            "'withheld'; here the update alone is asked."
        )
    if "membership/server" in names:
        notes.append(
            "Members: training rows told from held-out ones by their loss under the final model; "
            "by the trunk, with heads that the server fits to rows of its own, and by whoever has "
            "the clients' own heads, too. Noise by client protects the trunk alone."
        )
    if any(name.startswith("epsilon/") for name in names):
        notes.append(
            "Epsilon at the delta in the settings, of the client that pays most, over all rounds; "
            f"a dash is no guarantee. Noise by row is [{EXAMPLE}]; that by client cannot be small "
            "with so few clients. The attacks do not model noise: that they fail bounds nothing, "
            "epsilon does."
        )
    return notes
