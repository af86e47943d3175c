"""The report of a run: one HTML page that holds its charts, its data and its script."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from common.best import BestBy
from common.sums_form import EPOCHS
from simulations import charts
from simulations.affinity_charts import make_affinity
from simulations.client_section import make_clients
from simulations.formats import (
    LOWER_IS_BETTER,
    NOTHING,
    direction,
    format_bytes,
    format_count,
    format_figure,
    format_seconds,
)
from simulations.heldout_section import make_balance, make_heldout
from simulations.page_parts import (
    MOST_ROWS,
    Charts,
    card,
    contents,
    fill_page,
    folded,
    header,
    note,
    part,
    side_by_side,
    table,
    write_page,
)
from simulations.privacy_section import make_privacy
from simulations.run_record import RunRecord, read_run, task_figures
from simulations.summary import describe_figures
from simulations.time_chart import profile_chart
from simulations.yardstick_section import make_gains


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not.

    Args:
        run: the run folder.
        out: the page; by default ``report.html`` in the run folder.

    Returns:
        The page's path.

    Raises:
        CheckpointError: this is no run folder, or it cannot be read or written.
    """
    return write_page(out or run / "report.html", make_page(read_run(run)))


def make_page(record: RunRecord) -> str:
    """Make the page of a run."""
    collected = Charts()
    body = make_body(record, collected)
    return fill_page(f"{record.experiment.name} - fedmtl report", body, collected)


def collect_figures(run: Path) -> dict[str, charts.Chart]:
    """Make all figures of a run's page: name of a file without its ending -> chart.

    Raises:
        CheckpointError: this is no run folder, or it cannot be read.
    """
    collected = Charts()
    make_body(read_run(run), collected)
    return collected.named


def make_body(record: RunRecord, collected: Charts) -> list[str]:
    """Make the page's parts; its figures are collected."""
    sections = [
        ("Result", make_result(record)),
        ("Balance over tasks", make_gains(record, collected) + make_balance(record, collected)),
        ("Learning curves", make_curves(record, collected)),
        ("Held-out rows", make_heldout(record, collected)),
        ("Across clients", make_clients(record, collected)),
        ("Task weights", make_weights(record, collected)),
        ("Affinity", make_affinity(record, collected)),
        ("Privacy", make_privacy(record, collected)),
        ("Cost", make_cost(record, collected)),
        ("Participation", make_participation(record, collected)),
        ("Repeat this run", make_origin(record)),
    ]
    return [make_header(record), contents(sections)]


def make_header(record: RunRecord) -> str:
    """Say what was run: name, state, description, facts."""
    experiment, results = record.experiment, record.results
    is_whole = results is not None and results["stopped"] == "all rounds done"
    state = results["stopped"] if results else "unfinished"
    last = record.rounds[-1] if record.rounds else None
    keys = ("sent-bytes", "received-bytes")
    # The results count the last evaluation too, which belongs to no round.
    traffic = results["traffic"] if results else sum_traffic(record, keys)
    facts = {
        "data": experiment.data.source,
        "engine": record.environment.get("engine", NOTHING),
        "seed": experiment.seed,
        "rounds": f"{last['round'] if last else 0} of {experiment.federation.rounds}",
        "clients": count_clients(record),
        "time": format_seconds(last["elapsed_s"]) if last else NOTHING,
        **{key.removesuffix("-bytes"): format_bytes(traffic[key]) for key in keys},
        "fingerprint": experiment.fingerprint(),
    }
    if record.hostile:
        count = format_count(len(record.hostile["clients"]), "client")
        facts["hostile"] = f"{count}, {record.hostile['attack']}"
    return header(experiment.name, experiment.description, facts, state, is_warning=not is_whole)


def make_result(record: RunRecord) -> str:
    """Make the table of figures per task, and the run's warnings."""
    if record.final is None:
        return card(note("No trunk was evaluated yet."))
    rows = []
    for name, task in record.experiment.tasks.items():
        metric = task.metric_name
        validation, test = (task_figures(record.final, s, name) for s in ("validation", "test"))
        spread = (test or validation).get("spread") or {}
        rows.append(
            [
                f"{escape(name)} <small>{task.kind}</small>",
                f"{metric} {direction(metric)}",
                format_figure(validation.get(metric)),
                f"<strong>{format_figure(test.get(metric))}</strong>",
                describe_best(record, name),
                format_figure(spread.get("median")),
                f"{format_figure(spread.get('p10'))} to {format_figure(spread.get('p90'))}",
                f"{test.get('examples', 0):,}",
            ]
        )
    headings = ["task", "metric", "validation", "test", "best validation", "median client"]
    headings += ["clients, p10 to p90", "clients" if is_noised(record) else "test rows"]
    about = describe_result(record)
    return card(table(headings, rows, words=2)) + note(about) + make_warnings(record)


def is_noised(record: RunRecord) -> bool:
    """Whether figures are means over clients with noise, and not over rows."""
    return record.experiment.privacy.sums_regime == "noised"


def describe_result(record: RunRecord) -> str:
    """Say what the figures of the result are over, and which round was best."""
    if record.final is None:
        return ""
    about = (
        f"Figures of the trunk after round {record.final['trunk-round']}, on "
        f"{format_count(record.final['clients'], 'client')} with their own heads."
    )
    if not is_noised(record):
        about += (
            " Validation and test count every labelled row alike; the spread counts every client "
            "alike, on test rows."
        )
    if told := describe_figures(record.experiment):
        about += f" {told[0].upper()}{told[1:]}."
    if groups := (record.results or {}).get("groups"):
        count = len({*groups.values()})
        about += f" Each client has the trunk of its group, of which there are {count}."
    best = (record.results or {}).get("best")
    if best:
        best_by = BestBy.of(record.experiment)
        rank = "highest" if best_by.is_maximised else "lowest"
        about += f" The {rank} {best_by.name} was that of round {best['trunk-round']}."
    return about + describe_epochs(record)


def describe_epochs(record: RunRecord) -> str:
    """Say how many epochs clients did in the last round, where they may stop early."""
    tasks = record.rounds[-1]["train"]["tasks"].values() if record.rounds else ()
    done = sorted(own[EPOCHS] for own in tasks if charts.is_figure(own.get(EPOCHS)))
    if not done:
        return ""
    least, most = format_figure(done[0]), format_figure(done[-1])
    many = least if least == most else f"{least} to {most}"
    return f" Clients may stop early: in the last round they did {many} epochs on average."


def describe_best(record: RunRecord, task: str) -> str:
    """Name the best validation figure of a task and its round."""
    metric = record.experiment.tasks[task].metric_name
    found = [
        (figure, evaluation["trunk-round"])
        for evaluation in record.evaluations
        if charts.is_figure(figure := task_figures(evaluation, "validation", task).get(metric))
    ]
    if not found:
        return NOTHING
    best = min if metric in LOWER_IS_BETTER else max
    figure, number = best(found, key=lambda pair: pair[0])
    return f"{format_figure(figure)} <small>round {number}</small>"


def make_warnings(record: RunRecord) -> str:
    """List the run's warnings."""
    warnings = (record.results or {}).get("warnings", [])
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings[:MOST_ROWS])
    return folded(format_count(len(warnings), "warning"), f'<ul class="warnings">{items}</ul>')


def make_curves(record: RunRecord, collected: Charts) -> str:
    """Draw every task's metric and losses over rounds, then the learning rate."""
    if not record.rounds:
        return ""
    parts: list[str] = []
    for name in record.experiment.tasks:
        figures = [charts.metric_chart(record, name), charts.loss_chart(record, name)]
        drawn = "".join(f"<div>{collected.figure(chart)}</div>" for chart in figures)
        drawn = f'<div class="charts">{drawn}</div>'
        parts.append(part(name, _state_of_task(record, name), drawn, is_first=not parts))
    if (rate := charts.rate_chart(record)) is not None:
        return "".join(parts) + card(collected.figure(rate))
    rates = [lr for line in record.rounds if charts.is_figure(lr := line.get("lr"))]
    same = note(f"The learning rate was {format_figure(rates[0])} in every round.") if rates else ""
    return "".join(parts) + same


def _state_of_task(record: RunRecord, name: str) -> str:
    """Say a task's kind, and what it came to on validation rows."""
    task = record.experiment.tasks[name]
    figure = task_figures(record.final, "validation", name).get(task.metric_name)
    if not charts.is_figure(figure):
        return task.kind
    return f"{task.kind}, validation {task.metric_name} {format_figure(figure)}"


def make_weights(record: RunRecord, collected: Charts) -> str:
    """Draw the task weights, or say that they never changed, and gradient norms where known."""
    if not record.rounds:
        return ""
    chart, gradients = charts.weights_chart(record), charts.gradient_charts(record)
    drawn = [collected.figure(each) for each in ([chart] if chart else []) + gradients]
    parts = side_by_side(drawn) if drawn else ""
    if chart is None:
        weights = record.rounds[-1]["weights"]
        same = ", ".join(f"{task} {format_figure(weight)}" for task, weight in weights.items())
        parts = card(note(f"The same in every round: {same}.")) + parts
    return parts


def make_cost(record: RunRecord, collected: Charts) -> str:
    """Draw traffic and time per round, and where the time went if that was measured."""
    if not record.rounds:
        return ""
    drawn = [charts.traffic_chart(record), charts.time_chart(record), profile_chart(record.path)]
    return side_by_side(collected.figure(chart) for chart in drawn)


def make_participation(record: RunRecord, collected: Charts) -> str:
    """Show who answered, and who was left out and why."""
    if not record.rounds:
        return ""
    chart, lost = charts.participation_chart(record), describe_lost(record)
    if chart is None:
        asked = sorted({line["clients"]["asked"] for line in record.rounds})
        count = f"{asked[0]} to {asked[-1]:,} clients"
        count = format_count(asked[0], "client") if len(asked) == 1 else count
        return card(note(f"{count} asked per round, and all of them answered every time.{lost}"))
    times = Counter(
        (name, reason)
        for line in record.rounds
        for name, reason in line["clients"]["left-out"].items()
    )
    rows = [
        [escape(name), escape(reason), f"{count:,}"]
        for (name, reason), count in times.most_common(MOST_ROWS)
    ]
    left_out = card(table(["left out", "reason", "rounds"], rows, words=2)) if rows else ""
    return card(collected.figure(chart), note(lost) if lost else "") + left_out


def describe_lost(record: RunRecord) -> str:
    """Say which rounds were skipped, asked again, or noted something, as plain text."""
    skipped = Counter(line["skipped"] for line in record.rounds if line.get("skipped"))
    repeats = sum(len(line.get("lost-attempts", ())) for line in record.rounds)
    said = ""
    if repeats:
        count = format_count(repeats, "attempt")
        said += f" {count} with too few replies, after which the round was asked again."
    if skipped:
        reasons = ", ".join(f"{why} ({times:,})" for why, times in skipped.most_common(5))
        count = format_count(skipped.total(), "round")
        said += f" {count} skipped, in which the trunk stayed as it was: {reasons}."
    notes = Counter(note for line in record.rounds for note in line.get("notes", ()))
    for what, times in notes.most_common(5):
        said += f" In {format_count(times, 'round')}: {what}."
    return said


def make_origin(record: RunRecord) -> str:
    """Fold away what the run depends on: the experiment and the versions."""
    versions = record.environment.get("versions", {})
    machine = record.environment.get("machine", {})
    rows = [[escape(str(k)), escape(str(v))] for k, v in {**versions, **machine}.items()]
    experiment = f"<pre>{escape(record.experiment_toml)}</pre>"
    environment = folded("Versions and machine", table(["what", "value"], rows, words=2))
    return folded("Experiment, resolved", experiment) + (environment if rows else "")


def sum_traffic(record: RunRecord, keys: Sequence[str]) -> dict[str, int]:
    """Add up the payload of all rounds."""
    return {key: sum(line["traffic"][key] for line in record.rounds) for key in keys}


def count_clients(record: RunRecord) -> str:
    """Count the clients that a run has, or that its rounds asked."""
    if record.results:
        return f"{record.results['final']['clients']:,}"
    asked = max((line["clients"]["asked"] for line in record.rounds), default=0)
    return f"{asked:,}"
