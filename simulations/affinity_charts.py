"""The report's matrices: how alike the updates of tasks, and of clients, were."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from server.aggregation.linkage import order_alike
from simulations.charts import MOST_NAMED_CLIENTS, Chart, shorten
from simulations.formats import format_count
from simulations.page_parts import Charts, card, note, side_by_side
from simulations.run_record import RunRecord

Matrix = Sequence[Sequence[float | None]]
MOST_WRITTEN = 8  # things of a matrix whose numbers are written into its cells
# Okabe & Ito's blue and orange, with the card between them: readable to the colour-blind.
SCALE = [[0.0, "$c1"], [0.5, "$card"], [1.0, "$c0"]]


def make_affinity(record: RunRecord, collected: Charts) -> str:
    """Draw the affinity of tasks and of clients; nothing where it was not measured."""
    found = (record.results or {}).get("affinity")
    if not found:
        return ""
    tasks, clients = found["tasks"], found.get("clients")
    drawn = []
    if len(tasks["names"]) > 1 and _has_pair(tasks):
        drawn.append(affinity_chart("Tasks", tasks["names"], tasks["matrix"]))
    if clients and _has_pair(clients):
        drawn.append(affinity_chart("Clients", clients["names"], clients["matrix"]))
    about = (
        "The cosine between updates of the part of the trunk that all tasks share, over "
        f"{format_count(found['rounds'], 'round')}: 1 where they pull the same way, -1 where they "
        "pull apart."
    )
    if len(tasks["names"]) > 1:
        about += (
            " Between tasks it is the mean over pairs of different clients, one holding each task, "
            "so clients that hold all tasks cannot tell tasks apart."
        )
    return card(note(about)) + side_by_side(collected.figure(chart) for chart in drawn)


def affinity_chart(title: str, names: Sequence[str], matrix: Matrix) -> Chart:
    """Draw a matrix of cosines, those alike as neighbours.

    Args:
        title: what is compared.
        names: of the n things.
        matrix: [n, n], symmetric; None where nothing is known.
    """
    order = order_alike(_filled(matrix))
    cells = [[matrix[row][column] for column in order] for row in order]
    labels = [escape(names[place]) for place in order]
    places = list(range(len(order)))
    is_few = len(order) <= MOST_NAMED_CLIENTS
    ticks: dict[str, Any] = {"showgrid": False, "ticks": "", "constrain": "domain"}
    if is_few:
        ticks |= {"tickvals": places, "ticktext": [escape(shorten(names[p], 14)) for p in order]}
    else:
        ticks |= {"showticklabels": False}
    edges = [-0.5, len(order) - 0.5]
    return Chart(
        title=f"{title}: cosine between updates",
        traces=[_heat_map(places, labels, cells)],
        layout={
            "xaxis": {**ticks, "range": edges, "tickangle": -45},
            "yaxis": {**ticks, "range": edges[::-1], "scaleanchor": "x"},
            "hovermode": "closest",
        },
        height=400,
        note="" if is_few else f"{len(order)} clients; point at a cell for names and value.",
    )


def _heat_map(places: list[int], labels: list[str], cells: list[list[float | None]]) -> Any:
    hover = [[f"{one}<br>{other}" for other in labels] for one in labels]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": cells,
        "zmin": -1,
        "zmax": 1,
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "text": hover,
        "meta": {"x": labels, "y": labels, "z": "cosine"},
        "hovertemplate": "%{text}<br>cosine %{z:.3f}<extra></extra>",
        "hoverongaps": False,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": [-1, -0.5, 0, 0.5, 1],
            "ticktext": ["-1", "-0.5", "0", "0.5", "1"],
        },
    }
    if len(places) <= MOST_WRITTEN:
        trace |= {"texttemplate": "%{z:.2f}"}
    elif len(places) > 60:
        trace |= {"xgap": 0, "ygap": 0}
    return trace


def _filled(matrix: Matrix) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Make what is not known 0, and everything like itself, for the order."""
    filled = np.array([[cell or 0.0 for cell in row] for row in matrix], np.float64)
    np.fill_diagonal(filled, 1.0)
    return filled


def _has_pair(part: Any) -> bool:
    return any(cell is not None for row in part["matrix"] for cell in row)
