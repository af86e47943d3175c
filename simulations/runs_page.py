"""The page of several runs: what differs between them, and what came of it, side by side."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path

from common.errors import ConfigError
from simulations.charts import is_figure
from simulations.comparison_charts import curves_chart
from simulations.comparison_page import figure_of
from simulations.formats import (
    LOWER_IS_BETTER,
    NOTHING,
    direction,
    format_bytes,
    format_count,
    format_figure,
    format_seconds,
)
from simulations.page_parts import (
    Charts,
    card,
    fill_page,
    header,
    note,
    section,
    side_by_side,
    table,
    write_page,
)
from simulations.report import sum_traffic
from simulations.run_charts import epsilon_curves, round_curves
from simulations.run_list import epsilon_of, flatten, state_of
from simulations.run_record import RunRecord, read_run, task_figures
from simulations.summary import describe_figures

PAGE = "runs.html"
MOST_RUNS = 24  # curves that can be told apart
ABOUT_ROWS = ("seed", "data.", "inputs.", "partition.")  # settings that decide the test rows
UNTOLD = ("name", "description")  # of the settings: they change no result
LONGEST_VALUE = 60

Runs = Mapping[str, RunRecord]  # shortest name that no other run has -> run


def write_runs_page(folders: Sequence[Path], out: Path) -> Path:
    """Write one page of several runs, finished or not.

    Raises:
        ConfigError: a folder is given twice, or there are too many.
        CheckpointError: one is no run folder, or it cannot be read, or the page not be written.
    """
    if len(folders) > MOST_RUNS:
        raise ConfigError(
            f"RUN must be given at most {MOST_RUNS} times, got {len(folders)}; choose some of them "
            "with fedmtl runs --where"
        )
    return write_page(out, make_page({n: read_run(f) for n, f in name_runs(folders).items()}))


def name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Name each run by as many of the last parts of its path as tell it from the others.

    Raises:
        ConfigError: a folder is given twice.

    >>> list(name_runs([Path("/a/seed-0/x"), Path("/a/seed-1/x"), Path("/a/y")]))
    ['seed-0/x', 'seed-1/x', 'y']
    """
    parts = {folder.resolve(): folder.resolve().parts for folder in folders}
    if len(parts) < len(folders):
        raise ConfigError(
            f"RUN must be another folder each time, got {len(folders)} names of {len(parts)}; "
            "remove what is twice"
        )
    named = {}
    for folder, own in parts.items():
        length = 1
        while length < len(own) and [p[-length:] for p in parts.values()].count(own[-length:]) > 1:
            length += 1
        named["/".join(own[-length:])] = folder
    return named


def make_page(runs: Runs) -> str:
    """Make the page of several runs."""
    collected = Charts()
    differ = differing_settings(runs)
    body = [
        make_header(runs),
        section("Result", make_result(runs, differ)),
        section("Settings that differ", make_settings(runs, differ)),
        section("Learning curves", make_curves(runs, collected)),
        section("Privacy", make_privacy(runs, collected)),
        section("Cost", make_cost(runs, collected)),
        section("Runs", make_origin(runs)),
    ]
    return fill_page(f"{format_count(len(runs), 'run')} - fedmtl report", body, collected)


def make_header(runs: Runs) -> str:
    """Say which runs these are."""
    experiments = list(dict.fromkeys(run.experiment.name for run in runs.values()))
    facts = {
        "experiments": ", ".join(experiments),
        "seeds": ", ".join(map(str, sorted({run.experiment.seed for run in runs.values()}))),
        "tasks": ", ".join(dict.fromkeys(task for task, _ in tasks_of(runs))),
    }
    done = sum(state_of(run) == "done" for run in runs.values())
    badge = f"{done} of {len(runs)} done"
    return header(
        f"{format_count(len(runs), 'run')} side by side",
        "",
        facts,
        badge,
        is_warning=done < len(runs),
    )


def tasks_of(runs: Runs) -> list[tuple[str, str]]:
    """List the tasks of all runs with their metrics; one measured in two ways is there twice."""
    return list(
        dict.fromkeys(
            (name, task.metric_name)
            for run in runs.values()
            for name, task in run.experiment.tasks.items()
        )
    )


def with_task(runs: Runs, task: str, metric: str) -> Runs:
    """Keep the runs that have a task and measure it by this metric."""
    return {
        name: run
        for name, run in runs.items()
        if task in run.experiment.tasks and run.experiment.tasks[task].metric_name == metric
    }


def make_result(runs: Runs, differ: Mapping[str, Sequence[str]]) -> str:
    """Make the table of final test figures; the best of each task is bold."""
    columns = {
        (task, metric): {
            name: task_figures(run.final, "test", task).get(metric)
            for name, run in with_task(runs, task, metric).items()
        }
        for task, metric in tasks_of(runs)
    }
    best = {key: best_of(figures, key[1]) for key, figures in columns.items()}
    rows = []
    for name, run in runs.items():
        cells = [
            f"<strong>{cell}</strong>" if name in best[key] else cell
            for key, figures in columns.items()
            for cell in [format_figure(figures.get(name))]
        ]
        trained = str(run.final["trunk-round"]) if run.final else NOTHING
        rows.append([_breakable(name), escape(state_of(run)), trained, *cells])
    headings = ["run", "state", "rounds"]
    headings += [f"{task}: {metric} {direction(metric)}" for task, metric in columns]
    return card(table(headings, rows, words=2)) + "".join(map(note, notes_of(runs, differ)))


def best_of(figures: Mapping[str, float | None], metric: str) -> set[str]:
    """Name the best, all of them where several are; nobody where all are alike, or one is alone."""
    known = {name: figure for name, figure in figures.items() if is_figure(figure)}
    if len({*known.values()}) < 2:
        return set()
    best = (min if metric in LOWER_IS_BETTER else max)(known.values())
    return {name for name, figure in known.items() if figure == best}


def notes_of(runs: Runs, differ: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what the figures are, and what keeps them from being compared."""
    notes = [
        "Figures of the last trunk that was evaluated, on test rows, with the clients' own heads. "
        "The best of a column is bold. Single runs differ by chance, too: fedmtl compare repeats "
        "them with several seeds."
    ]
    split_apart = any(run.experiment.data.seed is None for run in runs.values())
    rows = [key for key in differ if key.startswith(ABOUT_ROWS) and (split_apart or key != "seed")]
    if rows:
        more = len(rows) - 5
        shown = ", ".join(rows[:5]) + (f" and {more} more" if more > 0 else "")
        notes.append(
            f"Test rows may not be the same, and be harder or easier: the runs differ in {shown}."
        )
    for name, run in runs.items():
        if told := describe_figures(run.experiment):
            notes.append(f"{name}: {told}.")
    return notes


def differing_settings(runs: Runs) -> dict[str, list[str]]:
    """Find the settings that are not the same in all runs: dotted key -> each run's value.

    A table that only some runs have is shown by its keys, not as a whole beside them.
    """
    found = [
        flatten(run.experiment.model_dump(mode="json", by_alias=True)) for run in runs.values()
    ]
    keys = list(dict.fromkeys(key for settings in found for key in settings))
    tables = {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    values = {key: [_show(settings.get(key)) for settings in found] for key in keys}
    return {
        key: shown
        for key, shown in values.items()
        if len({*shown}) > 1 and key not in tables and key not in UNTOLD
    }


def make_settings(runs: Runs, differ: Mapping[str, Sequence[str]]) -> str:
    """Make the table of settings that differ, a column for each run."""
    if not differ:
        return card(note("The experiments are the same, setting by setting."))
    rows = [[escape(key), *(escape(value) for value in values)] for key, values in differ.items()]
    return card(table(["setting", *runs], rows, words=1 + len(runs)))


def make_curves(runs: Runs, collected: Charts) -> str:
    """Draw every task's validation metric and loss over rounds, a curve for each run."""
    parts = []
    for task, metric in tasks_of(runs):
        own = {name: [run] for name, run in with_task(runs, task, metric).items()}
        charts = [
            curves_chart(
                f"Validation {name} {direction(name)}", own, partial(figure_of, task, name)
            )
            for name in dict.fromkeys((metric, "loss"))
        ]
        drawn = "".join(f"<div>{collected.figure(chart)}</div>" for chart in charts)
        title = f"<header><h3>{escape(task)}</h3><span>{metric}</span></header>"
        parts.append(card(title, f'<div class="charts">{drawn}</div>'))
    return "".join(parts)


def make_privacy(runs: Runs, collected: Charts) -> str:
    """Make the table of epsilons and draw them over rounds; nothing where no run has one."""
    rows = []
    for name, run in runs.items():
        last = run.rounds[-1].get("privacy", {}) if run.rounds else {}
        for unit, epsilon in epsilon_of(run).items():
            told = ((run.results or {}).get("privacy") or last)[unit]
            budget = NOTHING if told["budget"] is None else f"{told['budget']:g}"
            figure = f"<strong>{format_figure(epsilon)}</strong>"
            noise = format_figure(told["noise-multiplier"])
            rows.append(
                [_breakable(name), f"{unit} level", figure, f"{told['delta']:g}", budget, noise]
            )
    if not rows:
        return ""
    headings = ["run", "unit", "epsilon", "delta", "budget", "noise multiplier"]
    without = [name for name, run in runs.items() if not epsilon_of(run)]
    about = f"Without an epsilon: {', '.join(without)}." if without else ""
    drawn = side_by_side(
        collected.figure(epsilon_curves(runs, unit)) for unit in ("client", "example")
    )
    return card(table(headings, rows, words=2)) + (note(about) if about else "") + drawn


def make_cost(runs: Runs, collected: Charts) -> str:
    """Make the table of time and traffic, and draw both over rounds."""
    rows = []
    for name, run in runs.items():
        keys = ("sent-bytes", "received-bytes")
        traffic = run.results["traffic"] if run.results else sum_traffic(run, keys)
        seconds = run.rounds[-1].get("elapsed_s") if run.rounds else None
        each = seconds / len(run.rounds) if seconds is not None else None
        rows.append(
            [
                _breakable(name),
                escape(str(run.environment.get("engine", NOTHING))),
                f"{len(run.rounds):,}",
                *(NOTHING if t is None else format_seconds(t) for t in (seconds, each)),
                *(format_bytes(traffic[key]) for key in keys),
            ]
        )
    headings = ["run", "engine", "rounds", "time", "per round", "sent to clients", "received"]
    charts = (
        round_curves("Time so far", runs, lambda line: line.get("elapsed_s"), "s"),
        round_curves("Traffic per round", runs, lambda line: sum(line["traffic"].values()), "B"),
    )
    drawn = side_by_side(collected.figure(chart) for chart in charts)
    return card(table(headings, rows, words=2)) + drawn


def make_origin(runs: Runs) -> str:
    """Name the folders and what tells their experiments apart."""
    rows = [
        [_breakable(name), *(escape(str(cell)) for cell in (
            run.experiment.name, run.experiment.fingerprint(),
            run.environment.get("versions", {}).get("fedmtl", NOTHING),
            run.environment.get("command", NOTHING),
        ))]
        for name, run in runs.items()
    ]  # fmt: skip
    headings = ["run", "experiment", "fingerprint", "fedmtl", "command"]
    return card(table(headings, rows, words=5))


def _breakable(name: str) -> str:
    """Escape a run's name so that a phone may break it, as it does no long word.

    >>> _breakable("a/lr=0.1")
    'a/<wbr>lr=<wbr>0.1'
    """
    return re.sub(r"([/_=,-])", r"\1<wbr>", escape(name))


def _show(value: object) -> str:
    text = NOTHING if value is None else str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
