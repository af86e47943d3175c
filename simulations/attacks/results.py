"""What an attack leaves: ``attack-KIND.json`` with its figures, and a page beside it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.json_gaps import without_gaps
from server.checkpoint import replace_text
from simulations.page_parts import (
    Charts,
    card,
    fill_page,
    header,
    note,
    section,
    table,
    write_page,
)


def write_figures(out: Path, kind: str, content: Mapping[str, Any]) -> Path:
    """Write an attack's figures.

    Raises:
        CheckpointError: they cannot be written.
    """
    path = out / f"attack-{kind}.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(without_gaps(dict(content)), indent=1, allow_nan=False)
        replace_text(path, text + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
    return path


def write_attack_page(
    out: Path,
    kind: str,
    title: str,
    lead: str,
    facts: Mapping[str, object],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    notes: Iterable[str] = (),
    extra: str = "",
) -> Path:
    """Write an attack's page.

    Args:
        out: its folder.
        kind: of the attack; names the page.
        title: plain text.
        lead: plain text, what was done.
        facts: what was attacked.
        tables: title, headings and rows of plain text.
        notes: what to know when reading them.
        extra: HTML that comes before the tables, such as pictures.
    """
    charts = Charts()
    body = [header(title, lead, facts, "attack")]
    body += [section("Pictures", card(extra))] if extra else []
    for heading, headings, rows in tables:
        cells = [[escape(cell) for cell in row] for row in rows]
        body.append(section(heading, card(table(headings, cells))))
    body += [note(text) for text in notes]
    return write_page(out / f"attack-{kind}.html", fill_page(title, body, charts))


def tell(figure: Mapping[str, Any] | None, digits: int = 4) -> str:
    """Write a figure with its interval.

    >>> tell({"value": 0.5, "low": 0.25, "high": 0.75}, 2)
    '0.50 (0.25 to 0.75)'
    """
    if figure is None or figure.get("value") is None:
        return "-"
    value = f"{figure['value']:.{digits}f}"
    if figure.get("low") is None:
        return value
    return f"{value} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title)
    for place, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if place else "left")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console().print(shown)
