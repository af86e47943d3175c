"""What an evaluation leaves: evaluation.json, a page, and a CSV file for every figure."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.errors import CheckpointError
from common.json_gaps import without_gaps
from server.checkpoint import replace_text
from simulations.evaluation.page import make_page
from simulations.page_parts import write_page

Figures = Mapping[str, Any]
Sheet = tuple[str, Sequence[str], Sequence[Sequence[Any]]]  # name, headings, rows


def write_evaluation(figures: Figures, out: Path) -> list[Path]:
    """Write ``evaluation.json``, ``evaluation.html`` and ``evaluation/SPLIT-TASK-FIGURE.csv``.

    Returns:
        The paths of JSON, page, and the folder of CSV files.

    Raises:
        CheckpointError: they cannot be written.
    """
    plain = without_gaps(dict(figures))
    told, folder = out / "evaluation.json", out / "evaluation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(told, json.dumps(plain, indent=1, allow_nan=False) + "\n")
        for name, headings, rows in sheets(plain):
            replace_text(folder / f"{plain['split']}-{name}.csv", _to_csv(headings, rows))
    except OSError as error:
        raise CheckpointError(
            f"{out} cannot be written: {error.strerror or error}; choose another --out"
        ) from error
    return [told, write_page(out / "evaluation.html", make_page(plain)), folder]


def sheets(figures: Figures) -> Iterator[Sheet]:
    """Lay every figure out as a table."""
    tasks: Mapping[str, Figures] = figures["tasks"]
    balance = [[name, found.get("skill")] for name, found in tasks.items()]
    yield "balance", ("task", "skill"), balance
    for name, found in tasks.items():
        own = found["fairness"]["clients"].items()
        clients = [[client, one["figure"], one["rows"]] for client, one in own]
        yield f"{name}-clients", ("client", found["metric"], "rows"), clients
        draw = _residual_sheets if found["kind"] == "regression" else _class_sheets
        if found["rows"]:
            for what, headings, rows in draw(found):
                yield f"{name}-{what}", headings, rows


def _class_sheets(found: Figures) -> Iterator[Sheet]:
    yield (
        "confusion",
        ("label", "true", "decided", "rows"),
        [
            [one["name"], true, decided, count]
            for one in found["confusion"]
            for true, row in zip(one["classes"], one["rows"], strict=True)
            for decided, count in zip(one["classes"], row, strict=True)
        ],
    )
    for what, x, y in (("roc", "fpr", "tpr"), ("precision-recall", "recall", "precision")):
        points = [
            [one["name"], *point]
            for one in found["curves"]
            if one[what]
            for point in zip(one[what][x], one[what][y], strict=True)
        ]
        yield what, ("class", x, y), points
    keys = ("low", "high", "rows", "confidence", "right")
    yield "calibration", keys, [[b[key] for key in keys] for b in found["calibration"]["bins"]]


def _residual_sheets(found: Figures) -> Iterator[Sheet]:
    histogram, cells = [], []
    for one in found["residuals"]:
        edges = list(pairwise(one["histogram"]["edges"]))
        for edge, count in zip(edges, one["histogram"]["rows"], strict=True):
            histogram.append([one["name"], *edge, count])
        edges = list(pairwise(one["cells"]["edges"]))
        for true, row in zip(edges, one["cells"]["rows"], strict=True):
            cells += [
                [one["name"], *true, *said, n] for said, n in zip(edges, row, strict=True) if n
            ]
    yield "residuals", ("output", "low", "high", "rows"), histogram
    headings = ("output", "true-low", "true-high", "predicted-low", "predicted-high", "rows")
    yield "predicted-against-true", headings, cells


def _to_csv(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return text.getvalue()
