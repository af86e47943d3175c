"""The figures of a membership attack: a table in the terminal, a file, a page with the curves."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from simulations.attacks.results import write_figures
from simulations.attacks.roc import CONFIDENCE, LOW_RATES
from simulations.charts import Chart, curve, nth_style
from simulations.formats import format_count
from simulations.page_parts import Charts, card, fill_page, header, note, section, table, write_page

KIND = "membership"
Figures = Mapping[str, Any]


def write_membership(figures: Figures, out: Path) -> list[Path]:
    """Write ``attack-membership.json`` and a page beside it; returns where."""
    page = out / f"attack-{KIND}.html"
    return [write_figures(out, KIND, figures), write_page(page, make_page(figures))]


def print_membership(figures: Figures, console: Console) -> None:
    """Print a row per attacker and method."""
    result = Table(title=_title(figures))
    for place, heading in enumerate(headings()):
        result.add_column(heading, justify="left" if place < 2 else "right")
    for cells in lines_of(figures, "\n"):
        result.add_row(*cells)
    console.print(result)
    for text in notes_of(figures):
        console.print(text)


def headings() -> list[str]:
    """Head the columns."""
    return ["attacker", "method", "AUC", *(f"TPR at FPR {rate:.1%}" for rate in LOW_RATES)]


def lines_of(figures: Figures, between: str) -> Iterator[list[str]]:
    """Write one row of the table per attacker and method; `between` a figure and its interval."""
    for attacker, found in figures["attackers"].items():
        for method, own in found["methods"].items():
            auc = own["auc"]
            rates = [own["tpr-at-fpr"][f"{rate:g}"] for rate in LOW_RATES]
            yield [
                attacker,
                method,
                f"{auc['value']:.3f}{between}{auc['low']:.3f}-{auc['high']:.3f}",
                *(
                    f"{r['tpr']:.1%}{between}{100 * r['low']:.1f}-{100 * r['high']:.1f}"
                    for r in rates
                ),
            ]


def notes_of(figures: Figures) -> Iterator[str]:
    """Say what the figures are about, a sentence each."""
    for attacker, found in figures["attackers"].items():
        yield f"{attacker}: knows {found['knows']}."
    first = next(iter(next(iter(figures["attackers"].values()))["methods"].values()))
    yield (
        f"Below each figure its {CONFIDENCE:.0%} interval: Newcombe's for AUC, Clopper-Pearson's "
        f"for rates, of {first['members']:,} members and "
        f"{format_count(first['others'], 'held-out row')}."
    )
    least = LOW_RATES[0]
    if first["others"] * least < 1:
        yield (f"A false-positive rate of {least:.1%} of {first['others']:,} rows is none of them.")
    if figures["shadows"]:
        yield (
            f"{figures['shadows']} shadow federations, each trained on half of the rows in "
            "question of every client, with seeds of their own."
        )


def make_page(figures: Figures) -> str:
    """Make the page of an attack."""
    collected = Charts()
    facts = {
        "run": figures["run"],
        "experiment": figures["experiment"],
        "rounds": figures["round"],
        "clients": figures["clients"],
    }
    body = [
        header("Membership inference", _title(figures), facts, figures["method"]),
        section("Figures", card(table(headings(), lines_of(figures, "<br>"), words=2))),
        *(note(text) for text in notes_of(figures)),
        section("Curves", card(collected.figure(curves_chart(figures)))),
    ]
    return fill_page("Membership inference", body, collected)


def curves_chart(figures: Figures) -> Chart:
    """Draw all curves on logarithmic axes, on which low false-positive rates can be seen."""
    curves = [
        (f"{attacker}, {method}", own)
        for attacker, found in figures["attackers"].items()
        for method, own in found["methods"].items()
    ]
    lowest = min(1 / (10 * own["others"]) for _, own in curves)
    traces = []
    for number, (name, own) in enumerate(curves):
        points = list(zip(own["roc"]["fpr"], own["roc"]["tpr"], strict=True))
        shown = [(max(false, lowest), true) for false, true in points if true > 0]
        x, y = [list(column) for column in zip(*shown, strict=True)]
        traces.append(curve(name, x, y, **nth_style(number)))
    traces.append(curve("guessing", [lowest, 1.0], [lowest, 1.0], "$muted", "dot"))
    return Chart(
        title="True-positive rate by false-positive rate",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "false-positive rate"}, "type": "log"},
            "yaxis": {"title": {"text": "true-positive rate"}, "type": "log"},
        },
        height=440,
        note="Above the dotted line a method tells members from other rows.",
    )


def _title(figures: Figures) -> str:
    clients = format_count(figures["clients"], "client")
    return f"{figures['experiment']}: which rows did {clients} train on?"
