"""The figures of an audit: lines in the terminal, a file, and a page with the canaries' scores."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulations.attacks.audit_bound import CONFIDENCE
from simulations.attacks.results import write_figures
from simulations.charts import Chart
from simulations.formats import format_count, format_figure
from simulations.page_parts import Charts, card, fill_page, header, note, section, table, write_page

KIND = "audit"
Figures = Mapping[str, Any]


def write_audit(figures: Figures, out: Path) -> list[Path]:
    """Write ``attack-audit.json`` and a page beside it; returns where."""
    page = out / f"attack-{KIND}.html"
    return [write_figures(out, KIND, figures), write_page(page, make_page(figures))]


def lines_of(figures: Figures) -> Iterator[tuple[str, str]]:
    """Name each epsilon, from below to above."""
    bound = figures["bound"]
    yield f"lower bound at {CONFIDENCE:.0%}", format_figure(bound["epsilon"])
    if bound["gaussian"] is not None:
        yield (
            f"lower bound at {CONFIDENCE:.0%}, of Gaussian noise",
            format_figure(bound["gaussian"]),
        )
    for name, value in figures["estimates"].items():
        yield f"estimate, {name}", format_figure(value)
    yield "claimed by the accountant", format_figure(figures["claimed"])


def notes_of(figures: Figures) -> Iterator[str]:
    """Say what was done and found, a sentence each."""
    bound, unit = figures["bound"], figures["unit"]
    canaries = format_count(figures["canaries"], f"canary {unit}")
    yield (
        f"{canaries}, of which {figures['included']} were in by the toss of a coin; "
        f"{bound['right']} of {bound['guesses']} guesses were right."
    )
    if figures["refuted"]:
        yield (
            f"REFUTED: the claim of epsilon {figures['claimed']:.4g} at delta "
            f"{figures['delta']:g} does not hold; more is released than is accounted for."
        )
    else:
        yield (
            f"The claim of epsilon {figures['claimed']:.4g} at delta {figures['delta']:g} is not "
            "refuted; an audit cannot prove it."
        )


def make_page(figures: Figures) -> str:
    """Make the page of an audit."""
    collected = Charts()
    facts = {
        "experiment": figures["experiment"],
        "rounds": figures["rounds"],
        "noise multiplier": format_figure(figures["noise-multiplier"]),
        "delta": f"{figures['delta']:g}",
        "canaries": figures["canaries"],
    }
    refuted = figures["refuted"]
    title = f"Privacy audit by {figures['unit']}"
    verdict = "refuted" if refuted else "not refuted"
    lead = f"{figures['experiment']}: does the claimed epsilon hold?"
    body = [
        header(title, lead, facts, verdict, is_warning=refuted),
        section("Epsilon", table(["", "epsilon"], lines_of(figures))),
        *(note(text) for text in notes_of(figures)),
        section("Scores", card(collected.figure(scores_chart(figures)))),
    ]
    return fill_page(title, body, collected)


def scores_chart(figures: Figures) -> Chart:
    """Draw how the scores of both kinds of canaries are spread."""
    scores = figures["scores"]
    both = [*scores["included"], *scores["left-out"]]
    low, high = min(both), max(both)
    width = (high - low) / 30 or 1.0
    traces = [
        {
            "type": "histogram",
            "x": values,
            "name": name,
            "opacity": 0.6,
            "marker": {"color": colour},
            "xbins": {"start": low, "end": high + width, "size": width},
        }
        for name, values, colour in (
            ("in", scores["included"], "$c1"),
            ("left out", scores["left-out"], "$c0"),
        )
    ]
    return Chart(
        title="Scores of canaries that were in, and that were left out",
        traces=traces,
        layout={"barmode": "overlay", "xaxis": {"title": {"text": "score"}}},
        height=320,
        note="The further apart, the more of a unit's presence can be seen.",
    )
