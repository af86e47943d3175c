"""The page of a comparison: one HTML file with its table, charts, settings and command."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

from common.experiment import Experiment
from common.experiment_file import dump_experiment
from simulations.compare import seed_folder
from simulations.comparison_charts import curves_chart, figures_chart
from simulations.comparison_table import (
    Column,
    Comparison,
    columns_of,
    name_cells,
    name_headings,
    notes_of,
    rivals_of,
)
from simulations.formats import direction, format_count
from simulations.gains import YARDSTICK
from simulations.newcomers_table import TITLE as NEWCOMERS
from simulations.newcomers_table import (
    lines_of,
    newcomer_cells,
    newcomer_columns,
    newcomer_headings,
    newcomer_notes,
)
from simulations.page_parts import (
    Charts,
    card,
    fill_page,
    folded,
    header,
    note,
    section,
    side_by_side,
    table,
    write_page,
)
from simulations.run_record import Figures, RunRecord, read_run, task_figures

PAGE = "comparison.html"
Records = Mapping[str, Sequence[RunRecord]]  # contender -> its runs, a seed each


def write_comparison_page(experiment: Experiment, comparison: Comparison, out: Path) -> Path:
    """Write ``comparison.html`` beside the figures of a comparison.

    Args:
        experiment: what was compared, without varied settings.
        comparison: the content of comparison.json.
        out: its folder, with the run folders.

    Returns:
        The page's path.

    Raises:
        CheckpointError: a run folder cannot be read, or the page cannot be written.
    """
    return write_page(out / PAGE, make_page(experiment, comparison, read_records(comparison, out)))


def read_records(comparison: Comparison, out: Path) -> Records:
    """Read the runs of all contenders that have run folders."""
    return {
        name: [read_run(seed_folder(out, seed) / c["folder"]) for seed in comparison["seeds"]]
        for name, c in comparison["contenders"].items()
        if "folder" in c
    }


def make_page(experiment: Experiment, comparison: Comparison, records: Records) -> str:
    """Make the page of a comparison."""
    collected = Charts()
    columns = list(columns_of(comparison))
    body = [
        make_header(experiment, comparison),
        section("Result", make_result(comparison, columns)),
        section(NEWCOMERS, make_newcomers(comparison)),
        section("Over seeds", make_figures(comparison, columns, list(records), collected)),
        section("Learning curves", make_curves(comparison, records, collected)),
        section("Repeat this comparison", make_origin(experiment, comparison)),
    ]
    return fill_page(f"{experiment.name} - fedmtl comparison", body, collected)


def make_header(experiment: Experiment, comparison: Comparison) -> str:
    """Say what was compared."""
    facts = {
        "data": experiment.data.source,
        "seeds": f"{len(comparison['seeds'])}",
        "rounds": f"at most {experiment.federation.rounds}",
        **{f"varied: {key}": ", ".join(v) for key, v in comparison.get("vary", {}).items()},
        "fingerprint": comparison["fingerprint"],
    }
    rivals = rivals_of(comparison)
    badge = format_count(len(rivals), "variant" if "vary" in comparison else "contender")
    return header(experiment.name, experiment.description, facts, badge)


def make_result(comparison: Comparison, columns: Sequence[Column]) -> str:
    """Make the table of test figures."""
    seeds, rivals = len(comparison["seeds"]), rivals_of(comparison)
    best = [column.best(rivals) for column in columns]
    rows = []
    for name in comparison["contenders"]:
        cells = [escape(column.cell(name, seeds)) for column in columns]
        marked = [
            f"<strong>{cell}</strong>" if name in names else cell
            for cell, names in zip(cells, best, strict=True)
        ]
        rows.append([*map(escape, name_cells(comparison, name)), *marked])
    names = name_headings(comparison)
    headings = [*names, *(f"{column.heading}, {column.unit}" for column in columns)]
    return card(table(headings, rows, words=len(names))) + "".join(map(note, notes_of(comparison)))


def make_newcomers(comparison: Comparison) -> str:
    """Make the table of the clients that were held out; nothing without any."""
    if "newcomers" not in comparison:
        return ""
    rows = []
    for names, cells in newcomer_cells(comparison):
        figures = [f"<strong>{escape(c)}</strong>" if best else escape(c) for c, best in cells]
        rows.append([*map(escape, names), *figures])
    names = newcomer_headings(comparison)
    columns = newcomer_columns(comparison, lines_of(comparison))
    headings = [*names, *(f"{column.heading}, {column.unit}" for column in columns)]
    return card(table(headings, rows, words=len(names))) + "".join(
        map(note, newcomer_notes(comparison))
    )


def make_figures(
    comparison: Comparison, columns: Sequence[Column], curves: Sequence[str], collected: Charts
) -> str:
    """Draw every column's figures, the seeds' too."""
    yardstick = YARDSTICK if YARDSTICK in comparison["contenders"] else None
    return side_by_side(
        collected.figure(
            figures_chart(column, curves, yardstick if yardstick in column.spreads else None)
        )
        for column in columns
    )


def make_curves(comparison: Comparison, records: Records, collected: Charts) -> str:
    """Draw validation figures over rounds: each task's, and the loss that chooses the round."""
    if not records:
        return ""
    parts = []
    for task, metric in comparison["metrics"].items():
        charts = [
            curves_chart(
                f"Validation {name} {direction(name)}", records, partial(figure_of, task, name)
            )
            for name in (metric, "loss")
        ]
        drawn = "".join(f"<div>{collected.figure(chart)}</div>" for chart in charts)
        parts.append(
            card(f'<header><h3>{escape(task)}</h3></header><div class="charts">{drawn}</div>')
        )
    whole = curves_chart("All tasks: validation loss, weighted ↓", records, loss_of)
    about = (
        "The lines are means over seeds, as far as all of them got. The loss of all tasks chooses "
        "the round that a run is read at; it is the sum by the run's own weights, and no figure to "
        "compare runs of other weights by."
    )
    return "".join(parts) + card(collected.figure(whole)) + note(about)


def figure_of(task: str, name: str, evaluation: Figures) -> float | None:
    """Take a task's metric or loss on validation rows out of an evaluation."""
    figure: float | None = task_figures(evaluation, "validation", task).get(name)
    return figure


def loss_of(evaluation: Figures) -> float | None:
    """Take the weighted loss on validation rows out of an evaluation."""
    loss: float | None = (evaluation["validation"] or {}).get("loss")
    return loss


def make_origin(experiment: Experiment, comparison: Comparison) -> str:
    """Write the command and what the variants are; fold the experiment away."""
    rows = [
        [escape(name), *(escape(c[key]) for key in ("engine", "folder", "fingerprint"))]
        for name, c in comparison["contenders"].items()
        if "engine" in c
    ]
    headings = ["variant", "engine", "run folder, in seed-N", "fingerprint"]
    return (
        card(f"<pre>{escape(comparison['command'])}</pre>")
        + (folded("Variants", table(headings, rows, words=4)) if rows else "")
        + folded("Experiment, resolved", f"<pre>{escape(dump_experiment(experiment))}</pre>")
    )
