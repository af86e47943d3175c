"""The report's section on clients: how evenly the run serves them, and each one's figures."""

from html import escape

from simulations import charts
from simulations.evaluation.fairness import spread_over_clients
from simulations.evaluation.page import fairness_table
from simulations.formats import LOWER_IS_BETTER, NOTHING, format_count, format_figure
from simulations.page_parts import MOST_ROWS, Charts, card, folded, note, side_by_side, table
from simulations.run_record import Figures, RunRecord


def make_clients(record: RunRecord, collected: Charts) -> str:
    """Draw the final test figures of all clients, with the numbers folded away."""
    if record.results is None:
        return card(note("The figures of every client come with the end of the run."))
    tasks = record.experiment.tasks
    drawn = side_by_side(collected.figure(charts.clients_chart(record, task)) for task in tasks)
    return f"{make_fairness(record)}{drawn}\n{make_client_table(record)}"


def make_fairness(record: RunRecord) -> str:
    """Sum up how every task's test figures spread over clients; nothing where none left them."""
    spreads = {}
    for name, task in record.experiment.tasks.items():
        figures = charts.client_figures(record, name, "test")
        if figures:
            metric = task.metric_name
            rows = dict.fromkeys(figures, 0)
            better = metric not in LOWER_IS_BETTER
            spread = spread_over_clients(figures, rows, higher_is_better=better)
            spreads[name] = {"metric": metric, "fairness": spread}
    return fairness_table(spreads) if spreads else ""


def make_client_table(record: RunRecord) -> str:
    """Write the numbers behind the charts of clients."""
    clients: Figures = (record.results or {})["clients"]
    if not clients:
        return card(note("No figures of single clients left them."))
    tasks = record.experiment.tasks
    by_task = {task: charts.client_figures(record, task, "test") for task in tasks}
    groups = (record.results or {}).get("groups", {})
    rows = [
        [
            escape(name),
            *([str(groups.get(name, NOTHING))] if groups else []),
            *(_rows_told(clients[name], split) for split in ("train", "validation", "test")),
            *(format_figure(by_task[task].get(name)) for task in tasks),
        ]
        for name in list(clients)[:MOST_ROWS]
    ]
    headings = ["client", *(["group"] if groups else [])]
    headings += ["train rows", "validation rows", "test rows"]
    headings += [f"{name}: {task.metric_name}" for name, task in tasks.items()]
    rest = len(clients) - len(rows)
    more = note(f"{format_count(rest, 'more client')} in results.json.") if rest else ""
    return folded("Test figures of every client", table(headings, rows) + more)


def _rows_told(client: Figures, split: str) -> str:
    count = client["examples"].get(split)
    return NOTHING if count is None else f"{count:,}"
