"""The page of `simulations.benchmarks.utility_leakage`: tables, charts, and pictures to look at."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations.attacks.pictures import inline
from simulations.benchmarks.leakage_arms import ARMS, DATASETS
from simulations.benchmarks.leakage_tables import Summary, cells_of, columns_of, notes_of
from simulations.charts import Chart, is_figure, nth_style
from simulations.gains import spread
from simulations.page_parts import (
    Charts,
    card,
    fill_page,
    folded,
    header,
    note,
    section,
    table,
    write_page,
)

PAGE = "utility-leakage.html"
LEAD = (
    "What does it cost in usefulness that the server learns less of the clients' rows? Every arm "
    "trains the same federation and is attacked by what its server saw in round 1."
)
SIDE, GAP = 72, 3  # pixels of an image, and between two
Images = NDArray[np.float64]
Pictures = Mapping[str, tuple[Images, Images]]  # arm -> true, reconstructed


def write_leakage_page(
    out: Path,
    found: Mapping[str, Mapping[str, Summary]],
    pictures: Mapping[tuple[str, str], Pictures],
    facts: Mapping[str, object],
    settings: str,
) -> Path:
    """Write the page.

    Args:
        out: its folder.
        found: data set -> scene -> arm -> figures.
        pictures: (data set, scene) -> pictures of seed 0.
        facts: of the whole comparison.
        settings: overrides of every scene and arm, as text.
    """
    charts, title = Charts(), "Utility against leakage"
    body = [header(title, LEAD, facts, "comparison")]
    for dataset, scenes in found.items():
        for scene, summary in scenes.items():
            own = scene_parts(charts, dataset, scene, summary, pictures.get((dataset, scene), {}))
            body.append(section(f"{dataset}: {scene.replace('-', ' ')}", own))
    body.append(folded("Settings", f"<pre>{escape(settings)}</pre>"))
    return write_page(out / PAGE, fill_page(title, body, charts))


def scene_parts(
    charts: Charts, dataset: str, scene: str, summary: Summary, pictures: Pictures
) -> str:
    """Put a scene together: what it is, chart, pictures, table, notes."""
    parts = [f"<p>{escape(DATASETS[dataset].scenes[scene].line)}</p>"]
    if chart := trade_chart(summary):
        parts.append(card(charts.figure(chart)))
    if pictures:
        parts.append(card(picture_grid(pictures)))
    for title, columns in columns_of(summary).items():
        headings = [title, *(column.heading for column in columns)]
        rows = [[escape(cell) for cell in cells] for cells in cells_of(summary, columns)]
        parts.append(card(table(headings, rows)))
    parts += [note(text) for text in notes_of(summary)]
    return "".join(parts)


def trade_chart(summary: Summary) -> Chart | None:
    """Draw every arm as a dot, leakage across, utility up; None where nothing was inverted."""
    traces = []
    for place, own in enumerate(summary.values()):
        gain = own["figures"].get("inversion/gain")
        utility = own["figures"].get("utility")
        if gain and utility and is_figure(gain["mean"]) and is_figure(utility["mean"]):
            traces.append(_dot(own["title"], gain, utility, place))
    if not traces:
        return None
    return Chart(
        "Mean of tasks ↑ against error that inversion takes away, % ↓",
        traces,
        {
            "xaxis": {"title": {"text": "error taken away, %"}, "range": [-4, 104]},
            "yaxis": {"title": {"text": "mean of tasks"}, "rangemode": "tozero"},
            "hovermode": "closest",
        },
        height=330 + 22 * len(traces),
        note="Best is the upper left corner. 100 % is an exact copy; what is no better than the "
        "mean of other people's rows is 0. Bars: deviations over seeds.",
    )


def _dot(title: str, gain: Mapping[str, Any], utility: Mapping[str, Any], place: int) -> Any:
    """Make the dot of an arm; a seed whose attack is worse than the mean row counts as 0."""
    taken = spread([100 * max(0.0, value) for value in gain["seeds"]])
    colour = nth_style(place)["colour"]
    shapes = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon")
    bar = {"type": "data", "color": colour, "thickness": 1.2, "width": 3}
    return {
        "name": escape(title),
        "x": [taken["mean"]],
        "y": [utility["mean"]],
        "error_x": {**bar, "array": [taken["deviation"]]},
        "error_y": {**bar, "array": [utility["deviation"]]},
        "type": "scatter",
        "mode": "markers",
        "marker": {"color": colour, "size": 12, "symbol": shapes[place % len(shapes)]},
        "hovertemplate": "%{x:.0f} %, %{y:.3f}",
    }


def picture_grid(pictures: Pictures) -> str:
    """Lay out a client's true rows, and what is made of them under each arm, line by line."""
    true = next(iter(pictures.values()))[0]
    lines = [("true rows of a client", true)]
    lines += [(ARMS[arm].title, guessed) for arm, (_, guessed) in pictures.items()]
    shown = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>{inline(strip_png(images), title)}"
        "</figure>"
        for title, images in lines
    )
    return f'<div style="display:grid;gap:10px">{shown}</div>'


def strip_png(images: Sequence[Images] | Images) -> bytes:
    """Draw grey images [L, C, H, W], values from 0 to 1, side by side, enlarged, as a PNG."""
    from PIL import Image

    pixels = (np.clip(np.asarray(images)[:, 0], 0, 1) * 255).round().astype(np.uint8)
    factor = max(1, -(-SIDE // pixels.shape[1]))
    large = pixels.repeat(factor, 1).repeat(factor, 2)
    strip = np.concatenate(
        [np.pad(one, ((0, 0), (0, GAP)), constant_values=128) for one in large], 1
    )
    buffer = io.BytesIO()
    Image.fromarray(strip[:, :-GAP]).save(buffer, "PNG")
    return buffer.getvalue()
