"""An HTML page and its parts: header, tables, charts, folds, with the user's text escaped."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from common.errors import CheckpointError
from common.json_gaps import without_gaps
from server.checkpoint import replace_text
from simulations.charts import Chart

MOST_ROWS = 200  # of a table; the rest is counted


class Charts:
    """Collects the charts of a page, whose data goes into one script element."""

    def __init__(self) -> None:
        self._charts: dict[str, dict[str, Any]] = {}
        self.named: dict[str, Chart] = {}  # name of a file without its ending -> chart

    def figure(self, chart: Chart | None) -> str:
        """Make the element that a chart is drawn into, and what saves it; nothing for None."""
        if chart is None:
            return ""
        name = f"chart-{len(self._charts)}"
        file = self._name(chart)
        self.named[file] = chart
        self._charts[name] = {
            "title": whole_title(chart),
            "file": file,
            "traces": chart.traces,
            "layout": chart.layout,
            "height": chart.height,
        }
        note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
        return (
            f"<figure><figcaption>{escape(chart.title)}</figcaption>{_save_menu(chart)}"
            f'<div class="chart" id="{name}" style="min-height:{chart.height}px"></div>'
            f"{note}</figure>"
        )

    def to_json(self) -> str:
        """Write all charts so that no text in them can end the script element."""
        return json.dumps(without_gaps(self._charts)).replace("<", "\\u003c")

    def _name(self, chart: Chart) -> str:
        """Name a chart's files by its title, no two alike."""
        plain = slug(whole_title(chart)) or "figure"
        name, number = plain, 1
        while name in self.named:
            number += 1
            name = f"{plain}-{number}"
        return name


def whole_title(chart: Chart) -> str:
    """Say what a chart shows where its page is not at hand."""
    return f"{chart.about}: {chart.title}" if chart.about else chart.title


def slug(text: str) -> str:
    """Make a name for files and places in a page.

    >>> slug("ink: Validation r2 ↑")
    'ink-validation-r2'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:80]


def _save_menu(chart: Chart) -> str:
    """Make the buttons that save a chart; the script is told by `data-save` in which form."""
    buttons = "".join(
        f'<button type="button" data-save="{form}">{form.upper()}</button>'
        for form in ("svg", "png", "csv")
    )
    label = escape(f"Save figure: {whole_title(chart)}")
    return (
        f'<details class="save"><summary aria-label="{label}" title="Save this figure">Save'
        f"</summary><div>{buttons}</div></details>"
    )


def fill_page(title: str, body: Iterable[str], collected: Charts) -> str:
    """Make a page that needs no network, light or dark as the reader likes it.

    Args:
        title: plain text.
        body: its parts, as HTML.
        collected: the charts that are in them.
    """
    from plotly.offline import get_plotlyjs  # 4.8 MB of text

    folder = files("simulations") / "report_page"
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(folder / "style.css").read_text(encoding="utf-8"),
        body="\n".join(body),
        look=json.dumps(read_look()),
        charts=collected.to_json(),
        plotly=get_plotlyjs(),
        draw=(folder / "draw.js").read_text(encoding="utf-8"),
    )


def read_look() -> dict[str, Any]:
    """Read what all charts share: "themes" of colours, "common" layout, and that of an "axis".

    The colours are Okabe & Ito's, which colour-blind readers can tell apart; lighter on dark.
    """
    path = files("simulations") / "report_page" / "look.json"
    look: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return look


def write_page(path: Path, page: str) -> Path:
    """Write a page, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        replace_text(path, page)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}.") from error
    return path


def header(
    title: str, lead: str, facts: Mapping[str, object], badge: str, *, is_warning: bool = False
) -> str:
    """Head a page: what it is about in plain text, and the facts, the widest last."""
    cells = "".join(
        f"<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>"
        for key, value in facts.items()
    )
    mark = f'<span class="badge{" warn" if is_warning else ""}">{escape(badge)}</span>'
    about = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return (
        f'<header><div class="title"><h1>{escape(title)}</h1>{mark}</div>{about}'
        f'<dl class="facts">{cells}</dl></header>'
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Make a table.

    Args:
        headings: plain text.
        rows: cells that are HTML already; the first of each row names it.
        words: number of columns that hold text; those after them hold numbers.
    """
    kinds = ["" if column < words else ' class="number"' for column in range(len(headings))]
    head = "".join(
        f'<th scope="col"{k}>{escape(h)}</th>' for h, k in zip(headings, kinds, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td{k}>{cell}</td>" for cell, k in zip(cells, kinds[1:], strict=True))
        + "</tr>\n"
        for name, *cells in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>"
    )


def section(title: str, body: str, anchor: str = "") -> str:
    """Put a heading above a part of the page; nothing where the part is empty."""
    place = f' id="{anchor}"' if anchor else ""
    return f"<section{place}><h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def contents(parts: Sequence[tuple[str, str]]) -> str:
    """List the sections of a page, as links, and lay the sections out below.

    Args:
        parts: heading and body as HTML, of each; one without a body is left out.
    """
    shown = [(f"part-{number}", *pair) for number, pair in enumerate(parts) if pair[1]]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in shown)
    sections = "\n".join(section(title, body, anchor) for anchor, title, body in shown)
    return f'<nav aria-label="Contents">{links}</nav>\n{sections}'


def part(title: str, about: str, body: str, *, is_first: bool = False) -> str:
    """Make a part that opens and closes; on a phone, all but the first start closed.

    Args:
        title: plain text.
        about: what to know without opening it, plain text.
        body: HTML.
        is_first: whether it stays open on a phone.
    """
    first = " data-first" if is_first else ""
    return (
        f'<details class="part" open{first}><summary><h3>{escape(title)}</h3>'
        f"<span>{escape(about)}</span></summary><div>{body}</div></details>"
    )


def card(*parts: str) -> str:
    """Frame parts as one card."""
    return f'<div class="card">{"".join(parts)}</div>'


def side_by_side(figures: Iterable[str]) -> str:
    """Put charts into a grid of two columns, one on a phone."""
    cards = "".join(card(figure) for figure in figures if figure)
    return f'<div class="charts">{cards}</div>' if cards else ""


def folded(title: str, body: str) -> str:
    """Fold a part away under its title."""
    return f"<details><summary>{escape(title)}</summary><div>{body}</div></details>"


def note(text: str) -> str:
    """Make a small paragraph."""
    return f'<p class="note">{escape(text)}</p>'
