"""The page of an evaluation: one HTML file that holds its charts, its data and its script."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from typing import Any

from simulations.charts import Chart
from simulations.evaluation import charts
from simulations.formats import NOTHING, direction, format_count, format_figure
from simulations.page_parts import (
    Charts,
    card,
    contents,
    fill_page,
    folded,
    header,
    note,
    side_by_side,
    table,
)

MOST_DRAWN = 6  # labels or outputs of a task with charts of their own
MOST_ROWS = 200  # of the table of clients

Figures = Mapping[str, Any]


def make_page(figures: Figures) -> str:
    """Make the page."""
    collected = Charts()
    tasks: Mapping[str, Figures] = figures["tasks"]
    facts = {
        "split": figures["split"],
        "rows": f"{figures['rows']:,}",
        "clients": f"{figures['clients']:,}",
        "run": figures["run"],
        "fingerprint": figures["fingerprint"],
    }
    lead = (
        f"What the trunk of round {figures['round']} says with each client's own heads about "
        f"{figures['split']} rows, held against the truth."
    )
    sections = [
        ("Figures", make_figures(figures)),
        ("Balance over tasks", make_balance(tasks, collected)),
        *((name, make_task(found, collected, name)) for name, found in tasks.items()),
        ("Fairness over clients", make_fairness(tasks, collected)),
    ]
    body = [header(figures["experiment"], lead, facts, "evaluation"), contents(sections)]
    return fill_page(f"{figures['experiment']} - fedmtl evaluation", body, collected)


def make_figures(figures: Figures) -> str:
    """Make the table of all tasks, and what to know when reading it."""
    rows = [
        [
            f"{escape(name)} <small>{found['kind']}</small>",
            f"{found['metric']} {direction(found['metric'])}",
            f"<strong>{format_figure(found['figure'])}</strong>",
            format_figure(found["results"]),
            format_figure(mean_area(found)),
            format_figure((found.get("calibration") or {}).get("ece")),
            f"{found['rows']:,}",
        ]
        for name, found in figures["tasks"].items()
    ]
    headings = ["task", "metric", "here", "results.json", "ROC area", "calibration error", "rows"]
    told = "".join(note(text) for text in figures["notes"])
    about = note(
        "Metrics count every labelled row alike, but for auroc: that is the mean over the clients "
        "that hold both classes. The ROC area is the mean over classes or labels of their curves "
        "over all clients' rows together."
    )
    return card(table(headings, rows, words=2)) + about + told


def mean_area(found: Figures) -> float | None:
    """Average the areas under a task's ROC curves; None where there is none."""
    areas = [c["roc"]["auc"] for c in found.get("curves", ()) if c["roc"]]
    return sum(areas) / len(areas) if areas else None


def make_balance(tasks: Mapping[str, Figures], collected: Charts) -> str:
    """Set all tasks side by side on one scale."""
    chart = charts.balance_chart(tasks)
    return card(collected.figure(chart)) if chart else card(note("No task is known."))


def make_task(found: Figures, collected: Charts, name: str) -> str:
    """Draw what there is of one task."""
    if not found["rows"]:
        return card(note("Nobody has labelled rows of this task."))
    drawn = [replace(c, about=name) for c in _task_charts(found) if c is not None]
    parts = max(len(found.get("confusion", ())), len(found.get("residuals", ())))
    rest = f"{parts - MOST_DRAWN} more in evaluation.json." if parts > MOST_DRAWN else ""
    if not drawn:
        rest = "The model says no number about any row of this task."
    return side_by_side(map(collected.figure, drawn)) + (note(rest) if rest else "")


def _task_charts(found: Figures) -> Iterator[Chart | None]:
    for one in found.get("residuals", ())[:MOST_DRAWN]:
        yield charts.cells_chart(one)
        yield charts.residual_chart(one)
    if "curves" in found:
        yield from (charts.confusion_chart(one) for one in found["confusion"][:MOST_DRAWN])
        yield charts.reliability_chart(found["calibration"], found["kind"])
        yield charts.roc_chart(found["curves"])
        yield charts.precision_chart(found["curves"])


def make_fairness(tasks: Mapping[str, Figures], collected: Charts) -> str:
    """Draw every client's figures, and sum up how they spread."""
    drawn = side_by_side(
        collected.figure(charts.fairness_chart(name, found)) for name, found in tasks.items()
    )
    return fairness_table(tasks) + drawn + _clients_table(tasks)


def fairness_table(tasks: Mapping[str, Figures]) -> str:
    """Sum up how every task's figure spreads over clients.

    Args:
        tasks: task -> its "metric", and what `evaluation.fairness` says as "fairness".
    """
    keys = ("worst", "worst-decile", "p10", "median", "p90", "best", "deviation")
    rows = []
    for name, found in tasks.items():
        spread = found["fairness"]
        figures = [format_figure(spread[key]) for key in keys]
        head = f"{escape(name)} <small>{found['metric']} {direction(found['metric'])}</small>"
        rows.append([head, *figures, f"{spread['counted']:,}"])
    headings = ["task", "worst", "worst tenth", *keys[2:], "clients"]
    about = note(
        "Each client counts once. The worst tenth is the mean of the worst tenth of the clients, "
        "at least one; p10 and p90 go by size, whatever is better."
    )
    return card(table(headings, rows)) + about


def _clients_table(tasks: Mapping[str, Figures]) -> str:
    """Write the numbers behind the charts of clients."""
    names = list(dict.fromkeys(n for found in tasks.values() for n in found["fairness"]["clients"]))
    rows = []
    for name in sorted(names)[:MOST_ROWS]:
        cells = [escape(name)]
        for found in tasks.values():
            own = found["fairness"]["clients"].get(name)
            cells.append(
                f"{format_figure(own['figure'])} <small>of {own['rows']:,}</small>"
                if own
                else NOTHING
            )
        rows.append(cells)
    rest = len(names) - len(rows)
    more = note(f"{format_count(rest, 'more client')} in evaluation.json.") if rest else ""
    headings = ["client", *(f"{name}: {found['metric']}" for name, found in tasks.items())]
    return folded("Figures of every client, and its rows", table(headings, rows) + more)
