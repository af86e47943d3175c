"""Results on the terminal: a run's figures, cost and profile."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.experiment import Experiment
from simulations.formats import (
    NOTHING,
    direction,
    format_bytes,
    format_count,
    format_figure,
    format_seconds,
)
from simulations.live import metrics_of

WARNINGS_SHOWN = 10


def print_summary(experiment: Experiment, results: Mapping[str, Any], console: Console) -> None:
    """Print what results.json holds: figures of the final trunk per task, then cost and warnings.

    Args:
        experiment: names the tasks and their metrics.
        results: the content of results.json.
        console: where to print.
    """
    final = results["final"]
    table = Table(title=f"{experiment.name}: trunk of round {final['trunk-round']}")
    for heading in ("task", "metric"):
        table.add_column(heading)
    # Under noise every client counts once, whatever its rows.
    counted = "clients" if experiment.privacy.sums_regime == "noised" else "test rows"
    for heading in ("validation", "test", "clients p10 to p90", counted):
        table.add_column(heading, justify="right")
    for task, metric in metrics_of(experiment).items():
        validation, test = (
            (final[split] or {}).get("tasks", {}).get(task, {}) for split in ("validation", "test")
        )
        table.add_row(
            task,
            f"{metric} {direction(metric)}",
            format_figure(validation.get(metric)),
            Text(format_figure(test.get(metric)), style="bold"),
            describe_spread(test),
            f"{test.get('examples', 0):,}",
        )
    if experiment.privacy.sums_regime != "withheld":
        console.print(table)
    if about := describe_figures(experiment):
        console.print(about, highlight=False)
    for line in describe_privacy(results):
        console.print(line)
    traffic, clients = results["traffic"], results["final"]["clients"]
    console.print(
        f"{format_count(results['rounds'], 'round')} with "
        f"{format_count(clients, 'client')} in {format_seconds(results['seconds'])}"
        f" ({results['stopped']}); {format_bytes(traffic['sent-bytes'])} sent to clients, "
        f"{format_bytes(traffic['received-bytes'])} received",
        highlight=False,
    )
    if skipped := results.get("skipped-rounds"):
        told = f"{format_count(skipped, 'round')} skipped; metrics.jsonl says why"
        console.print(told, style="yellow", highlight=False)
    _print_warnings(results.get("warnings", []), console)


def describe_figures(experiment: Experiment) -> str:
    """Say what [privacy] makes of losses and metrics, in a sentence; empty where nothing."""
    privacy = experiment.privacy
    if privacy.sums_regime == "withheld":
        return "figures stay with the clients: privacy.sums is 'withheld'"
    if privacy.sums_regime == "noised":
        return (
            "figures hold noise, by which a share may be below 0 or above 1, and count every "
            "client alike: privacy.sums is 'noised'"
        )
    if privacy.smallest_group > 1:
        return (
            f"sums over fewer than {privacy.smallest_group:,} rows stay with their clients: "
            "privacy.smallest-group"
        )
    return ""


def print_profile(profile: Mapping[str, Any], console: Console) -> None:
    """Print what profile.json holds: mean time, share and calls of each section in a round.

    The first round warms up; it is what is shown only where it is all there is.
    """
    shown = profile["others"] or profile["first"]
    if shown is None:
        console.print("profile: this sitting had no round left to do", highlight=False)
        return
    rounds, first = shown["rounds"], profile["first"]
    table = Table(title=f"{profile['engine']}: where a round's time went")
    table.add_column("section")
    for heading in ("ms a round", "share", "calls a round"):
        table.add_column(heading, justify="right")
    for name, section in shown["sections"].items():
        calls = NOTHING if section["calls"] is None else f"{section['calls'] / rounds:,.1f}"
        table.add_row(
            name, f"{section['seconds'] / rounds * 1e3:,.2f}", f"{section['share']:.1%}", calls
        )
    table.add_section()
    table.add_row("round", f"{shown['seconds'] / rounds * 1e3:,.2f}", "100.0%", "")
    console.print(table)
    what = (
        "the first round of the sitting, which warms up"
        if shown is first
        else f"mean of {format_count(rounds, 'round')}; the first, which warms up, is not among "
        f"them and took {format_seconds(first['seconds'])}"
    )
    console.print(what, highlight=False)


def describe_spread(figures: Mapping[str, Any]) -> str:
    """Write the spread of a task's metric over clients.

    >>> describe_spread({"spread": {"p10": 0.5, "p90": 0.9, "clients": 7}})
    '0.5000 to 0.9000'
    """
    spread = figures.get("spread", {})
    low, high = format_figure(spread.get("p10")), format_figure(spread.get("p90"))
    return f"{low} to {high}" if spread.get("clients") else low


def _print_warnings(warnings: list[str], console: Console) -> None:
    for warning in warnings[:WARNINGS_SHOWN]:
        console.print(Text(f"warning: {warning}", style="yellow"))
    if len(warnings) > WARNINGS_SHOWN:
        console.print(f"and {len(warnings) - WARNINGS_SHOWN} warnings more", highlight=False)


def describe_privacy(results: Mapping[str, Any]) -> list[str]:
    """Say what the run cost, a line per unit; nothing without a budget.

    >>> figures = {"epsilon": 7.9, "delta": 1e-5, "budget": 8.0}
    >>> describe_privacy({"privacy": {"client": figures}})
    ['privacy, client level: epsilon 7.900 at delta 1e-05, of a budget of 8']
    """
    lines = []
    for unit in ("client", "example"):
        if told := results.get("privacy", {}).get(unit):
            budget = "" if told["budget"] is None else f", of a budget of {told['budget']:g}"
            epsilon = format_figure(told["epsilon"])
            lines.append(
                f"privacy, {unit} level: epsilon {epsilon} at delta {told['delta']:g}{budget}"
            )
    return lines
