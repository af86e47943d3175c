"""A measurement as a table for people."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from simulations.benchmarks.contenders import PLAIN
from simulations.benchmarks.figures import Figures
from simulations.formats import NOTHING, format_figure, format_seconds

OTHER_RESULT = "other result"  # in place of a ratio


def print_measurement(measurement: Figures, console: Console) -> None:
    """Print a line per contender, and below why some are missing."""
    table = Table(title=title(measurement), title_justify="left", caption_justify="left")
    table.add_column("contender")
    for heading in (
        "ratio (quartiles)",
        "ms a round",
        "CPU ms",
        "first round",
        "less import torch",
        "memory, processes",
        "at end",
        "trunk differs by",
    ):
        table.add_column(heading, justify="right")
    for name, figures in measurement["contenders"].items():
        if "ms-per-round" in figures:
            table.add_row(name, *cells(figures))
    table.caption = (
        f"Ratios are medians over cycles, to '{PLAIN}' = 1.00. Other processes kept "
        f"{measurement['others-load-cores']:.2f} cores busy in the median."
    )
    console.print(table)
    for name, figures in measurement["contenders"].items():
        if "skipped" in figures:
            console.print(f"{name}: skipped, {escape(figures['skipped'])}", highlight=False)


def title(measurement: Figures) -> str:
    """Say what was measured where."""
    machine, threads = measurement["machine"], measurement["threads"]
    return escape(
        f"{measurement['work']} on {measurement['device']}, threads a process: {threads}; "
        f"{machine['processor']}, {machine['cores']} cores, {measurement['date']}"
    )


def cells(figures: Figures) -> list[str]:
    """Write the figures of one contender."""
    first, bare = figures["first-round-s"], figures["import-torch-s"]
    return [
        ratio_cell(figures),
        format_figure(figures["ms-per-round"]),
        format_figure(figures["cpu-ms-per-round"]),
        format_seconds(first),
        NOTHING if bare is None else f"{first - bare:+.2f} s",
        memory_cell(figures["memory"]),
        memory_cell(figures["memory-at-end"]) if "memory-at-end" in figures else NOTHING,
        f"{figures['trunk']['relative-difference']:.0e}",
    ]


def ratio_cell(figures: Figures) -> str:
    """Write a ratio, or that the contender did other work.

    >>> ratio_cell({"ratio": {"median": 0.5, "lower-quartile": 0.4, "upper-quartile": 0.625}})
    '0.500 (0.400-0.625)'
    """
    ratio = figures.get("ratio")
    if ratio is None:
        return OTHER_RESULT
    return f"{ratio['median']:.3f} ({ratio['lower-quartile']:.3f}-{ratio['upper-quartile']:.3f})"


def memory_cell(memory: Figures) -> str:
    """Write the memory of a contender.

    >>> memory_cell({"resident-mb": 310, "processes": 1})
    '310 MB, 1'
    """
    return f"{memory['resident-mb']:,} MB, {memory['processes']}"
