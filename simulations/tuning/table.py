"""The figures of a search for people: the best trials, what was gained, and what to mind."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.comparison_table import describe_seeds
from simulations.formats import NOTHING, direction, format_count, format_figure
from simulations.tuning.study import AGAIN

MOST_SHOWN = 10  # trials of the terminal's table; the page has all
OWN_NAME = "own settings"
STATES = {  # Optuna's names of what became of a trial -> ours
    "complete": "done",
    "pruned": "pruned",
    "fail": "lost and repeated",
    "waiting": "not done",
    "running": "not done",
}

Outcome = Mapping[str, Any]  # the content of tune.json


def print_outcome(outcome: Outcome, console: Console) -> None:
    """Print the best trials, the best one's test figures and the notes."""
    objectives, seeds = outcome["objectives"], len(outcome["seeds"])
    table = Table(title=f"{outcome['experiment']}: best trials by validation")
    table.add_column("trial", justify="right")
    for key in outcome["space"]:
        table.add_column(key.replace(".", "\n."), overflow="fold")
    for objective in objectives:
        table.add_column(
            label_of(objective).replace("validation ", "validation\n"), justify="right"
        )
    rows = [t for t in ranked(outcome) if t["values"]][:MOST_SHOWN]
    for trial in rows:
        style = "bold" if trial["number"] in outcome["front"] else ""
        cells = [str(trial["number"]), *setting_cells(outcome, trial), *value_cells(outcome, trial)]
        table.add_row(*(Text(cell, style=style) for cell in cells))
    own = [describe_value(outcome["own-settings"]["values"], o["name"], seeds) for o in objectives]
    table.add_row(*map(Text, [OWN_NAME, *("" for _ in outcome["space"]), *own]))
    console.print(table)
    chosen = Table(title=f"trial {outcome['best']['number']}, chosen by validation, on test rows")
    for place, heading in enumerate(test_headings(outcome)):
        chosen.add_column(heading, justify="right" if place else "left")
    for row in test_rows(outcome):
        chosen.add_row(*map(Text, row))
    console.print(chosen)
    for note in notes_of(outcome):
        console.print(note, highlight=False)


def ranked(outcome: Outcome) -> list[Any]:
    """Sort trials: the best first by the first objective, those without a figure last."""
    first = outcome["objectives"][0]
    sign = -1 if first["direction"] == "maximise" else 1

    def place(trial: Mapping[str, Any]) -> tuple[bool, float, int]:
        values = trial["values"]
        return not values, sign * values[first["name"]]["mean"] if values else 0, trial["number"]

    return sorted(outcome["trials"], key=place)


def setting_cells(outcome: Outcome, trial: Mapping[str, Any]) -> list[str]:
    """Write a trial's settings, numbers with four digits."""
    return [short_setting(trial["settings"].get(key, NOTHING)) for key in outcome["space"]]


def value_cells(outcome: Outcome, trial: Mapping[str, Any]) -> list[str]:
    """Write a trial's objectives."""
    seeds = len(outcome["seeds"])
    return [describe_value(trial["values"], o["name"], seeds) for o in outcome["objectives"]]


def describe_value(values: Mapping[str, Any], name: str, seeds: int) -> str:
    """Write an objective with its deviation over seeds."""
    return describe_seeds(values[name], seeds) if name in values else NOTHING


def short_setting(text: str) -> str:
    """Shorten a fraction, and take the quotes off a text.

    >>> [short_setting(text) for text in ("0.012345678", "[64, 32]", "12", '"adam"')]
    ['0.01235', '[64, 32]', '12', 'adam']
    """
    if text.startswith('"'):
        return text.strip('"')
    try:
        return format_figure(float(text)) if "." in text or "e-" in text else text
    except ValueError:
        return text


def label_of(objective: Mapping[str, str]) -> str:
    """Name an objective, with an arrow to where it is better."""
    return f"validation {objective['name']} {direction(objective['name'].split('/')[-1])}"


def test_headings(outcome: Outcome) -> list[str]:
    """Head `test_rows`."""
    return ["task", f"trial {outcome['best']['number']}", OWN_NAME, "gain, seed by seed"]


def test_rows(outcome: Outcome) -> list[list[str]]:
    """Write the best trial's test figures beside those of the experiment's own settings."""
    best, seeds, rows = outcome["best"], len(outcome["seeds"]), []
    for task, metric in outcome["metrics"].items():
        gain = best["gain"].get(task)
        cells = [
            f"{task}, test {metric} {direction(metric)}",
            describe_value(best["test"], task, seeds),
            describe_value(best["own-settings"], task, seeds),
            describe_difference(gain, seeds) if gain else NOTHING,
        ]
        rows.append(cells)
    return rows


def describe_difference(gain: Mapping[str, Any], seeds: int) -> str:
    """Write a gain with its sign, and its deviation over seeds.

    >>> describe_difference({"mean": 0.0123, "deviation": 0.004}, 3)
    '+0.01230 ± 0.004'
    """
    mean = gain["mean"]
    written = format_figure(mean)
    written = written if written == NOTHING or mean < 0 else f"+{written}"
    return written if seeds == 1 else f"{written} ± {gain['deviation']:.2g}"


def counts_of(outcome: Outcome) -> str:
    """Count trials by what became of them."""
    trials = outcome["trials"]
    counts = Counter(STATES[trial["state"]] for trial in trials)
    states = dict.fromkeys(STATES.values())
    listed = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return f"{format_count(sum(AGAIN not in t for t in trials), 'trial')}: {listed}"


def no_better(outcome: Outcome) -> bool:
    """Tell whether no trial beats the experiment's own settings in any objective."""
    own, trials = outcome["own-settings"]["values"], outcome["trials"]

    def beats(trial: Mapping[str, Any], objective: Mapping[str, str]) -> bool:
        name, sign = objective["name"], 1 if objective["direction"] == "maximise" else -1
        mean, base = trial["values"][name]["mean"], own[name]["mean"]
        return bool(sign * mean > sign * base)

    done = [trial for trial in trials if trial["values"]]
    return bool(own) and not any(beats(t, o) for t in done for o in outcome["objectives"])


def notes_of(outcome: Outcome) -> list[str]:
    """Say what the figures are, a sentence or two each."""
    seeds = len(outcome["seeds"])
    best = outcome["best"]["number"]
    over = f"mean ± sample standard deviation over {format_count(seeds, 'seed')}"
    notes = [f"{counts_of(outcome)}. Figures: {over if seeds > 1 else 'one seed'}."]
    if len(outcome["objectives"]) > 1:
        notes.append(
            f"Bold: {format_count(len(outcome['front']), 'trial')} that none dominates, as "
            "good in all objectives and better in one; of them, trial "
            f"{best} has the best mean rank."
        )
    if no_better(outcome):
        notes.append(
            "The experiment's own settings are as good by validation as every trial: keep them, or "
            "search further."
        )
    notes.append(
        f"Trial {best} was chosen by validation, whose figure is the better for having been chosen "
        "by; its test figures are told once, here. Test rows chose nothing."
    )
    if seeds == 1:
        notes.append("One seed tells nothing of seed noise; --seeds N does.")
    if outcome["private"]:
        notes.append(
            "A run's epsilon is of that run alone: all trials were trained on the same rows, "
            "their budgets add up, and what the choice between them tells is not accounted."
        )
    return notes
