"""The charts of an evaluation."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from simulations.charts import Chart, curve, is_figure, nth_style, rank_chart, shorten
from simulations.formats import direction, format_count

MOST_WRITTEN = 12  # classes of a confusion matrix whose numbers are written into its cells
MOST_NAMED = 24  # classes whose names stand at the axes
MOST_CURVES = 8  # of a chart; of more, those with the smallest areas are drawn
SCALE = [[0.0, "$card"], [1.0, "$c0"]]
SQUARE = 340

Figures = Mapping[str, Any]


def confusion_chart(found: Figures) -> Chart:
    """Draw one confusion matrix: shares of each true class, with the numbers of rows."""
    counts: list[list[int]] = found["rows"]
    names = [escape(name) for name in found["classes"]]
    shares = [[n / total if (total := sum(row)) else None for n in row] for row in counts]
    places = list(range(len(names)))
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": places,
        "y": places,
        "z": shares,
        "zmin": 0,
        "zmax": 1,
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "text": counts,
        "meta": {"x": names, "y": names, "z": "share of the true class", "text": "rows"},
        "customdata": [[f"{true}, said to be {said}" for said in names] for true in names],
        "hovertemplate": "%{customdata}<br>%{text} rows, %{z:.1%} of the class<extra></extra>",
        "hoverongaps": False,
        "showscale": False,
    }
    if len(names) <= MOST_WRITTEN:
        trace["texttemplate"] = "%{text}"
    ticks: dict[str, Any] = {"showgrid": False, "ticks": "", "range": [-0.5, len(names) - 0.5]}
    if len(names) <= MOST_NAMED:
        short = [escape(shorten(name, 10)) for name in found["classes"]]
        ticks |= {"tickvals": places, "ticktext": short}
    return Chart(
        title=f"Confusion{_of(found['name'])}",
        traces=[trace],
        layout={
            "xaxis": {**ticks, "title": {"text": "decided"}},
            "yaxis": {**ticks, "range": [len(names) - 0.5, -0.5], "title": {"text": "true"}},
            "hovermode": "closest",
        },
        height=SQUARE if len(names) > 3 else 150 + 44 * len(names),
        note="Numbers of rows; the stronger the colour, the larger the share of the true class.",
    )


def roc_chart(curves: Sequence[Figures]) -> Chart | None:
    """Draw ROC curves, one against the rest; None where no class has both kinds of rows."""
    drawn, note = _choose(curves, "roc", "auc")
    if not drawn:
        return None
    traces = [
        curve(f"{shorten(c['name'])} {c['roc']['auc']:.3f}", c["roc"]["fpr"], c["roc"]["tpr"],
              **nth_style(place))
        for place, c in enumerate(drawn)
    ]  # fmt: skip
    return Chart(
        title="ROC, with areas",
        traces=[*traces, _guess([0, 1], [0, 1])],
        layout={**_unit("false-positive rate", "true-positive rate"), "showlegend": True},
        height=SQUARE,
        note=f"Each class or label against the rest, over all clients' rows. {note}".strip(),
    )


def precision_chart(curves: Sequence[Figures]) -> Chart | None:
    """Draw precision by recall; None where no class has both kinds of rows."""
    drawn, note = _choose(curves, "precision-recall", "average-precision")
    if not drawn:
        return None
    traces = []
    for place, found in enumerate(drawn):
        own = found["precision-recall"]
        name = f"{shorten(found['name'])} {own['average-precision']:.3f}"
        traces.append(curve(name, own["recall"], own["precision"], **nth_style(place)))
        traces[-1]["line"]["shape"] = "vh"  # as its area is summed: no line through what is not
    return Chart(
        title="Precision by recall, with average precision",
        traces=traces,
        layout={**_unit("recall", "precision"), "showlegend": True},
        height=SQUARE,
        note=f"Average precision is the area below the steps. {note}".strip(),
    )


def reliability_chart(found: Figures, kind: str) -> Chart | None:
    """Draw how often the model is right by how sure it is; None without rows."""
    bins = found["bins"]
    if not bins:
        return None
    rows = [b["rows"] for b in bins]
    largest = max(rows)
    dots = {
        **curve("model", [b["confidence"] for b in bins], [b["right"] for b in bins], "$c0"),
        "mode": "lines+markers",
        "cliponaxis": False,
        "marker": {"color": "$c0", "size": [6 + 14 * math.sqrt(n / largest) for n in rows]},
        "text": [format_count(n, "row") for n in rows],
        "meta": {"text": "rows"},
        "hovertemplate": "said %{x:.3f}, was %{y:.3f}<br>%{text}<extra></extra>",
    }
    said = "confidence in the decision" if kind == "multiclass" else "probability of yes"
    return Chart(
        title="Reliability",
        traces=[dots, _guess([0, 1], [0, 1], "perfectly calibrated")],
        layout=_unit(said, "share that is so"),
        height=SQUARE,
        note=f"Expected calibration error {found['ece']:.3f}: the mean distance from the dotted "
        "line over rows, in bins of a tenth (Guo et al. 2017, eq. 3). The larger a dot, the more "
        "rows; below the line the model is surer than it should be.",
    )


def cells_chart(found: Figures) -> Chart:
    """Draw predicted values against true ones, as numbers of rows in cells."""
    edges, cells = found["cells"]["edges"], found["cells"]["rows"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    # Plotly takes a row per y, the file has one per true value; empty cells stay blank.
    by_value = [[n or None for n in column] for column in zip(*cells, strict=True)]
    heat = {
        "type": "heatmap",
        "x": middles,
        "y": middles,
        "z": by_value,
        "zmin": 0,
        "colorscale": [[0.0, "$faint"], [1.0, "$c0"]],
        "meta": {"z": "rows"},
        "hovertemplate": "true %{x:.4g}, predicted %{y:.4g}<br>%{z} rows<extra></extra>",
        "hoverongaps": False,
        "colorbar": {"thickness": 10, "outlinewidth": 0, "title": {"text": "rows"}},
    }
    ends = [edges[0], edges[-1]]
    return Chart(
        title=f"Predicted against true{_of(found['name'])}",
        traces=[heat, _guess(ends, ends)],
        layout={
            "xaxis": {"title": {"text": "true"}, "range": ends},
            "yaxis": {"title": {"text": "predicted"}, "range": ends},
            "hovermode": "closest",
            "showlegend": False,
        },
        height=SQUARE,
        note="Rows counted in cells; the outer half per cent falls into the outer cells. On the "
        "dotted line a prediction is true.",
    )


def residual_chart(found: Figures) -> Chart:
    """Draw the histogram of residuals."""
    edges, rows = found["histogram"]["edges"], found["histogram"]["rows"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    bars = {
        "type": "bar",
        "x": middles,
        "y": rows,
        "marker": {"color": "$c0"},
        "hovertemplate": "%{x:.4g}: %{y} rows<extra></extra>",
    }
    at_zero = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"color": "$muted", "width": 1.5, "dash": "dash"},
    }
    return Chart(
        title=f"Residuals, predicted less true{_of(found['name'])}",
        traces=[bars],
        layout={
            "xaxis": {"title": {"text": "residual"}},
            "yaxis": {"title": {"text": "rows"}},
            "bargap": 0.05,
            "shapes": [at_zero],
            "hovermode": "closest",
        },
        height=SQUARE,
        note=f"Mean {found['mean']:.4g}, deviation {found['deviation']:.4g}, mean size "
        f"{found['mae']:.4g}.",
    )


def fairness_chart(task: str, found: Figures) -> Chart | None:
    """Draw every client's figure of a task; None where nobody has one."""
    metric = found["metric"]
    known = {
        name: own["figure"]
        for name, own in found["fairness"]["clients"].items()
        if is_figure(own["figure"])
    }
    return rank_chart(f"{task}: {metric} {direction(metric)}", metric, known, found["figure"])


def balance_chart(tasks: Mapping[str, Figures]) -> Chart | None:
    """Draw what all tasks gain over a guess, on one scale; None where none is known."""
    known = {n: t["skill"] for n, t in tasks.items() if is_figure(t.get("skill"))}
    if not known:
        return None
    names = list(known)[::-1]  # the first on top
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [known[name] for name in names],
        "y": [escape(shorten(name)) for name in names],
        "marker": {"color": "$c0"},
        "hovertemplate": "%{y} %{x:.3f}<extra></extra>",
    }
    low = min(0.0, *known.values())
    return Chart(
        title="Skill ↑",
        traces=[bars],
        layout={
            "xaxis": {"title": {"text": "0: a guess, 1: perfect"}, "range": [low, 1]},
            "yaxis": {"type": "category"},
            "hovermode": "closest",
        },
        height=110 + 32 * len(names),
        note="1 - error / error of a guess, which says the commonest class or the mean of these "
        "rows; errors are wrong decisions or squared residuals.",
    )


def _choose(curves: Sequence[Figures], kind: str, area: str) -> tuple[list[Figures], str]:
    """Take the curves that exist, or those with the smallest areas; and say what is left out."""
    known = [found for found in curves if found[kind]]
    said = []
    if len(known) < len(curves):
        lacking = len(curves) - len(known)
        said.append(f"{lacking} of {len(curves)} without a curve: all rows are of one kind.")
    if len(known) > MOST_CURVES:
        said.append(
            f"The {MOST_CURVES} smallest areas of {len(known)}; evaluation.json has the others."
        )
        known = sorted(known, key=lambda found: found[kind][area])[:MOST_CURVES]
    return known, " ".join(said)


def _guess(x: Sequence[float], y: Sequence[float], name: str = "guessing") -> dict[str, Any]:
    guide = {"hoverinfo": "skip", "showlegend": False, "meta": {"guide": True}}
    return {**curve(name, x, y, "$muted", "dot"), **guide}


def _unit(across: str, up: str) -> dict[str, Any]:
    ends = [-0.02, 1.02]
    return {
        "xaxis": {"title": {"text": across}, "range": ends},
        "yaxis": {"title": {"text": up}, "range": ends},
        "hovermode": "closest",
    }


def _of(name: str) -> str:
    return f": {name}" if name else ""
