"""A page's figures as files: tables of data, Plotly's JSON, and pictures."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import CheckpointError, ConfigError
from common.json_gaps import without_gaps
from server.checkpoint import replace_text
from simulations.charts import Chart, Trace
from simulations.page_parts import read_look, whole_title

FORMATS = ("csv", "json", "svg", "png")
PICTURES = frozenset({"svg", "png"})
INSTALL = 'pip install "fedmtl[figures]"'
WIDTH = 720  # of a picture, in pixels
TITLE = 44  # pixels of its height for the title
PNG_SCALE = 2

Row = list[Any]


def parse_formats(text: str) -> tuple[str, ...]:
    """Read what ``--format`` says, as in ``csv,svg``.

    Raises:
        ConfigError: it names none, another, or a package for pictures is missing.
    """
    formats = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not formats or set(formats) - set(FORMATS):
        raise ConfigError(
            f"--format must name some of {', '.join(FORMATS)}, commas between, got '{text}'; "
            "choose some of them"
        )
    if PICTURES & set(formats) and find_spec("kaleido") is None:
        raise ConfigError(
            f"--format {text} needs kaleido, which draws pictures with an installed Chrome or "
            f"Chromium: {INSTALL}; the report page saves single figures without it"
        )
    return formats


def write_figures(figures: Mapping[str, Chart], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write every figure in every format, as ``FOLDER/NAME.FORMAT``.

    Args:
        figures: name of a file without its ending -> chart.
        folder: made where it is missing; files of the same names are replaced.
        formats: some of `FORMATS`.

    Raises:
        CheckpointError: the folder cannot be written, or there is no browser to draw pictures.
    """
    paths = [folder / f"{name}.{form}" for form in formats for name in figures]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if "csv" in formats:
            for name, chart in figures.items():
                replace_text(folder / f"{name}.csv", to_csv(chart))
        if "json" in formats:
            for name, chart in figures.items():
                replace_text(folder / f"{name}.json", json.dumps(compose(chart)) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --figures"
        ) from error
    for form in formats:
        if form in PICTURES:
            _draw(figures, folder, form)
    return paths


def to_csv(chart: Chart) -> str:
    """Write a figure's data as CSV, a row for each point or cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(sheet_of(chart))
    return text.getvalue()


def sheet_of(chart: Chart) -> list[Row]:
    """Lay a figure's data out as a table, headings first: the same as `sheet` in draw.js makes.

    A trace's `meta` says what Plotly has no word for: "series", its name here; "x" and "y", names
    of a matrix's columns and rows; "z" and "text", what cells and texts are; "guide", that it is
    drawn for the eye alone.
    """
    traces = chart.traces
    telling = [t.get("meta", {}) for t in traces if t.get("z") or "text" in t.get("meta", {})]
    first = telling[0] if telling else {}
    has_z = any("z" in trace for trace in traces)
    titles = [(chart.layout.get(f"{a}axis") or {}).get("title", {}).get("text") or a for a in "xy"]
    headings = ["series", *titles, *([first["z"]] if has_z else [])]
    headings += [first["text"]] if "text" in first else []
    rows = [row for trace in traces for row in _rows_of(trace, first, has_z=has_z)]
    return [headings, *rows]


def compose(chart: Chart) -> dict[str, Any]:
    """Make a figure that Plotly draws anywhere: in light colours, on white, with its title."""
    look = read_look()
    common, axis = look["common"], look["axis"]
    margin = common["margin"]
    axes = {
        f"{name}axis": {
            **axis,
            **(own := chart.layout.get(f"{name}axis") or {}),
            "title": {**axis["title"], **own.get("title", {})},
        }
        for name in "xy"
    }
    layout = {
        **common,
        "font": {"family": "sans-serif", "size": 12, "color": "$ink"},
        "showlegend": sum(t.get("showlegend", True) for t in chart.traces) > 1,
        **chart.layout,
        **axes,
        "width": WIDTH,
        "height": chart.height + TITLE,
        "margin": {**margin, "t": margin["t"] + TITLE},
        "paper_bgcolor": "$card",
        "title": {
            "text": whole_title(chart).replace("&", "&amp;").replace("<", "&lt;"),
            "font": {"size": 14},
            "x": 0.02,
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 14},
        },
    }
    figure = paint({"data": chart.traces, "layout": layout}, look["themes"]["light"])
    plain: dict[str, Any] = without_gaps(figure)
    return plain


def paint(value: Any, theme: Mapping[str, Any]) -> Any:
    """Replace names of colours, such as ``$c0`` and ``$c0-soft``, by those of a theme.

    >>> paint({"line": {"color": "$c1-soft"}}, {"c": ["#000000", "#d55e00"]})
    {'line': {'color': '#d55e0033'}}
    """
    if isinstance(value, dict):
        return {key: paint(part, theme) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [paint(part, theme) for part in value]
    if not isinstance(value, str) or not value.startswith("$"):
        return value
    if found := re.fullmatch(r"\$c(\d)(-soft)?", value):
        return theme["c"][int(found[1])] + ("33" if found[2] else "")
    return theme.get(value[1:], value)


def _rows_of(trace: Trace, first: Mapping[str, str], *, has_z: bool) -> Iterator[Row]:
    """Lay one trace out, a row for each point or known cell."""
    meta = trace.get("meta", {})
    if meta.get("guide"):
        return
    name = _plain(meta.get("series", trace.get("name", "")))
    texts = trace.get("text")
    if "z" not in trace:
        for place, (x, y) in enumerate(zip(trace["x"], trace["y"], strict=True)):
            text = [_plain(texts[place]) if texts else None] if "text" in first else []
            yield [name, _plain(x), _plain(y), *([None] if has_z else []), *text]
        return
    across, up = meta.get("x", trace["x"]), meta.get("y", trace["y"])
    for j, line in enumerate(trace["z"]):
        for i, z in enumerate(line):
            if z is not None:
                text = [_plain(texts[j][i]) if texts else None] if "text" in first else []
                yield [name, _plain(across[i]), _plain(up[j]), z, *text]


def _plain(text: Any) -> Any:
    """Undo what was done for Plotly, which reads simple HTML."""
    return unescape(text.replace("<br>", " ")) if isinstance(text, str) else text


def _draw(figures: Mapping[str, Chart], folder: Path, form: str) -> None:
    """Draw all figures, in one sitting of the browser."""
    import plotly.graph_objects as go
    import plotly.io

    try:
        plotly.io.write_images(
            [go.Figure(compose(chart)) for chart in figures.values()],
            [str(folder / f"{name}.{form}") for name in figures],
            scale=PNG_SCALE if form == "png" else 1,
        )
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written: {error.strerror or error}; choose another --figures"
        ) from error
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"figures cannot be drawn as {form}: {reason} Kaleido needs Chrome or Chromium: name "
            "one in the variable BROWSER_PATH, or take --format csv,json, which are written first"
        ) from error
