"""The table of a comparison: a row per contender, a column per task, the best of each marked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.charts import is_figure
from simulations.formats import LOWER_IS_BETTER, NOTHING, direction, format_count, format_figure
from simulations.gains import YARDSTICK, Spread
from simulations.step_time import MEANING

Comparison = Mapping[str, Any]  # the content of comparison.json


@dataclass(frozen=True)
class Column:
    """One column of figures.

    Attributes:
        heading: what is measured.
        unit: the metric, and where it gets better.
        spreads: contender -> figure over seeds; one that has none is absent.
        write: writes a figure, given the number of seeds.
        is_lower_better: which of two is best.
    """

    heading: str
    unit: str
    spreads: Mapping[str, Spread]
    write: Callable[[Spread, int], str]
    is_lower_better: bool = False

    def cell(self, contender: str, seeds: int) -> str:
        """Write a contender's figure."""
        return self.write(self.spreads[contender], seeds) if contender in self.spreads else NOTHING

    def best(self, rivals: Sequence[str]) -> set[str]:
        """Name those with the best mean; nobody where there is no rivalry."""
        means = {n: self.spreads[n]["mean"] for n in rivals if n in self.spreads}
        means = {name: mean for name, mean in means.items() if is_figure(mean)}
        if len(means) < 2:
            return set()
        choose = min if self.is_lower_better else max
        return {name for name, mean in means.items() if mean == choose(means.values())}


def columns_of(comparison: Comparison) -> Iterator[Column]:
    """List the columns: the tasks, Delta-m, and the time of a local step, where they are known."""
    contenders = comparison["contenders"]
    for task, metric in comparison["metrics"].items():
        spreads = {name: contender["tasks"][task] for name, contender in contenders.items()}
        unit = f"{metric} {direction(metric)}"
        yield Column(task, unit, spreads, describe_seeds, metric in LOWER_IS_BETTER)
    gains = {name: c["delta-m"] for name, c in contenders.items() if "delta-m" in c}
    if gains:
        yield Column("Delta-m", "% ↑", gains, describe_gain)
    times = {name: c["step-ms"] for name, c in contenders.items() if "step-ms" in c}
    if times:
        yield Column("local step", "ms ↓", times, describe_seeds, is_lower_better=True)


def rivals_of(comparison: Comparison) -> list[str]:
    """Name the contenders of which one is best: variants; without any, all there are."""
    contenders = comparison["contenders"]
    if "vary" not in comparison:
        return list(contenders)
    return [name for name, contender in contenders.items() if "folder" in contender]


def name_headings(comparison: Comparison) -> list[str]:
    """Head the columns that name a contender: how it trained, or what was varied."""
    return list(comparison.get("vary", ["trained"]))


def name_cells(comparison: Comparison, name: str) -> list[str]:
    """Name a contender in these columns."""
    if "vary" not in comparison:
        return [name]
    contender = comparison["contenders"][name]
    first, *others = (contender["settings"].get(key, "") for key in comparison["vary"])
    if "folder" not in contender:
        first = ", ".join(filter(None, [YARDSTICK, first]))
    return [first, *others]


def notes_of(comparison: Comparison) -> list[str]:
    """Say what the figures are, a sentence each."""
    seeds, contenders = comparison["seeds"], comparison["contenders"].values()
    has_gains = any("delta-m" in contender for contender in contenders)
    about = f"Mean ± sample standard deviation over {format_count(len(seeds), 'seed')}"
    if has_gains:
        about += "; Delta-m is the mean relative gain over single-task local training"
    varied = comparison.get("vary")
    bold = "" if varied is None else " The best variant of a column is bold."
    notes = [f"{about}.{bold}"]
    if comparison.get("private") or any(name.startswith("privacy.") for name in varied or ()):
        notes.append("Local and centralised training is without the noise of [privacy].")
    if varied is None:
        return notes
    if len({contender.get("yardstick") for contender in contenders} - {None}) > 1:
        gains = "; Delta-m compares each with local training on its own rows" if has_gains else ""
        notes.append(f"Variants have different test rows, which may be harder or easier{gains}.")
    notes.append(MEANING)
    if comparison["jobs"] > 1:
        notes.append(
            f"{comparison['jobs']} runs at a time shared this machine, which lengthens their steps."
        )
    return notes


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what `simulations.compare` or `simulations.compare_variants` found."""
    seeds, rivals = len(comparison["seeds"]), rivals_of(comparison)
    columns = list(columns_of(comparison))
    best = [column.best(rivals) for column in columns]
    table = Table(title=f"{comparison['experiment']}: test figures")
    for heading in name_headings(comparison):
        table.add_column(heading.replace(".", "\n."), overflow="fold")
    for column in columns:
        table.add_column(f"{column.heading}\n{column.unit}", justify="right")
    for name in comparison["contenders"]:
        cells = [
            Text(column.cell(name, seeds), style="bold" if name in names else "")
            for column, names in zip(columns, best, strict=True)
        ]
        table.add_row(*map(Text, name_cells(comparison, name)), *cells)
    console.print(table)
    for note in notes_of(comparison):
        console.print(note, highlight=False)


def describe_seeds(figure: Spread, seeds: int) -> str:
    """Write a figure with its deviation over seeds.

    >>> describe_seeds({"mean": 0.91234, "deviation": 0.0123}, 3)
    '0.9123 ± 0.012'
    """
    mean = format_figure(figure["mean"])
    return mean if seeds == 1 or mean == NOTHING else f"{mean} ± {figure['deviation']:.2g}"


def describe_gain(gain: Spread, seeds: int) -> str:
    """Write a gain in percent with its deviation over seeds.

    >>> describe_gain({"mean": 3.21, "deviation": 0.54}, 3)
    '+3.2 ± 0.5'
    >>> describe_gain({"mean": float("nan"), "deviation": 0.0}, 1)
    '-'
    """
    if not is_figure(gain["mean"]):
        return NOTHING
    mean = f"{gain['mean']:+.1f}"
    return mean if seeds == 1 else f"{mean} ± {gain['deviation']:.1f}"
