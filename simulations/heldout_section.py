"""The report's section on held-out rows: what `fedmtl evaluate` found, where it was asked."""

from simulations.evaluation import page as evaluation
from simulations.formats import direction, format_figure
from simulations.page_parts import Charts, card, note, part
from simulations.run_record import Figures, RunRecord, read_beside

FILE = "evaluation.json"
KEYS = frozenset({"run", "round", "fingerprint", "split", "clients", "rows", "notes", "tasks"})


def make_heldout(record: RunRecord, collected: Charts) -> str:
    """Draw confusion, ROC, precision, calibration and residuals of every task."""
    if record.results is None:
        return ""
    found = read_evaluation(record)
    if found is None:
        return card(note(how_to_evaluate(record)))
    parts: list[str] = []
    for name, own in found["tasks"].items():
        figure = f"{own['metric']} {direction(own['metric'])} {format_figure(own['figure'])}"
        about = f"{own['kind']}, {found['split']} {figure}"
        drawn = evaluation.make_task(own, collected, name)
        parts.append(part(name, about, drawn, is_first=not parts))
    return evaluation.make_figures(found) + "".join(parts)


def make_balance(record: RunRecord, collected: Charts) -> str:
    """Set the tasks side by side on one scale; nothing where nothing is known."""
    found = read_evaluation(record)
    return "" if found is None else evaluation.make_balance(found["tasks"], collected)


def read_evaluation(record: RunRecord) -> Figures | None:
    """Read what `fedmtl evaluate` left in the run folder.

    Returns:
        None where there is nothing, or it looked at other models than those of the run's end.

    Raises:
        CheckpointError: the file cannot be read.
    """
    found = read_beside(record, FILE, KEYS, "fedmtl evaluate")
    if found is None or record.final is None:
        return None
    return found if found["round"] == record.final["trunk-round"] else None


def how_to_evaluate(record: RunRecord) -> str:
    """Say what would fill the section."""
    return (
        "Confusion, ROC, precision and recall, calibration and residuals are drawn here once "
        f"fedmtl evaluate {record.path} has looked at the held-out rows."
    )
