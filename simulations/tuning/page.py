"""The page of a search: one HTML file with its history, slices, front, best trial and table."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from common.experiment import Experiment
from common.experiment_file import dump_experiment
from simulations.formats import format_count, format_seconds
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
from simulations.tuning.charts import front_charts, history_chart, slice_charts
from simulations.tuning.study import AGAIN
from simulations.tuning.table import (
    OWN_NAME,
    STATES,
    Outcome,
    describe_value,
    label_of,
    notes_of,
    ranked,
    setting_cells,
    short_setting,
    test_headings,
    test_rows,
    value_cells,
)

PAGE = "tune.html"


def write_tuning_page(experiment: Experiment, outcome: Outcome, out: Path) -> Path:
    """Write ``tune.html`` beside tune.json.

    Args:
        experiment: what was tuned.
        outcome: the content of tune.json; it has a best trial.
        out: its folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    return write_page(out / PAGE, make_page(experiment, outcome))


def make_page(experiment: Experiment, outcome: Outcome) -> str:
    """Make the page of a search."""
    collected = Charts()
    objectives = outcome["objectives"]
    history = [collected.figure(history_chart(outcome, o)) for o in objectives]
    slices = [collected.figure(c) for o in objectives for c in slice_charts(outcome, o)]
    body = [
        make_header(experiment, outcome),
        section("Best trial", make_best(outcome)),
        section("Pareto front", side_by_side(map(collected.figure, front_charts(outcome)))),
        section("History", side_by_side(history)),
        section("Settings", side_by_side(slices)),
        section("Trials", make_trials(outcome)),
        section("Repeat this search", make_origin(experiment, outcome)),
    ]
    return fill_page(f"{experiment.name} - fedmtl tuning", body, collected)


def make_header(experiment: Experiment, outcome: Outcome) -> str:
    """Say what was searched, how, and for what."""
    facts = {
        "data": experiment.data.source,
        "sampler": outcome["sampler"],
        "pruning": outcome["prune"],
        "seeds": len(outcome["seeds"]),
        "objective": ", ".join(map(label_of, outcome["objectives"])),
        **{f"tuned: {key}": text for key, text in outcome["space"].items()},
    }
    badge = format_count(sum(AGAIN not in t for t in outcome["trials"]), "trial")
    return header(experiment.name, experiment.description, facts, badge)


def make_best(outcome: Outcome) -> str:
    """Make the table of the best trial's settings, and of its test figures."""
    best = outcome["best"]
    settings = [[escape(k), escape(short_setting(v))] for k, v in best["settings"].items()]
    rows = [[escape(cell) for cell in row] for row in test_rows(outcome)]
    return (
        card(table(["setting", f"trial {best['number']}"], settings, words=2))
        + card(table(test_headings(outcome), rows))
        + "".join(map(note, notes_of(outcome)))
    )


def make_trials(outcome: Outcome) -> str:
    """Make the table of all trials, the best first."""
    names = ["trial", "state", *outcome["space"]]
    headings = [*names, *map(label_of, outcome["objectives"]), "time"]
    seeds = len(outcome["seeds"])
    own = outcome["own-settings"]["values"]
    values = [describe_value(own, o["name"], seeds) for o in outcome["objectives"]]
    rows = [[OWN_NAME, "", *("" for _ in outcome["space"]), *map(escape, values), ""]]
    rows += [trial_row(outcome, trial) for trial in ranked(outcome)]
    reasons = [
        [str(trial["number"]), escape(trial["reason"])]
        for trial in outcome["trials"]
        if trial["reason"]
    ]
    why = folded("Why trials have no figure", table(["trial", "reason"], reasons, words=2))
    return card(table(headings, rows, words=len(names))) + (why if reasons else "")


def trial_row(outcome: Outcome, trial: Mapping[str, Any]) -> list[str]:
    """Write one trial; one of the front is bold."""
    seconds = trial["seconds"]
    cells = [
        str(trial["number"]),
        STATES[trial["state"]],
        *setting_cells(outcome, trial),
        *value_cells(outcome, trial),
        "" if seconds is None else format_seconds(seconds),
    ]
    mark = "<strong>{}</strong>" if trial["number"] in outcome["front"] else "{}"
    return [mark.format(escape(cell)) for cell in cells]


def make_origin(experiment: Experiment, outcome: Outcome) -> str:
    """Write the command; fold the experiment away."""
    return card(f"<pre>{escape(outcome['command'])}</pre>") + folded(
        "Experiment, resolved, without a trial's settings",
        f"<pre>{escape(dump_experiment(experiment))}</pre>",
    )
