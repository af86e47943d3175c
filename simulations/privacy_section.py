"""The report's privacy section: epsilon over rounds, what was asked for, what it rests on."""

from html import escape

from simulations.charts import Chart, axes, curve, is_figure, reference_line, thin, unzip
from simulations.formats import NOTHING, format_figure
from simulations.page_parts import Charts, card, folded, note, side_by_side, table
from simulations.run_record import Figures, RunRecord

UNITS = {"client": "client level", "example": "example level"}


def make_privacy(record: RunRecord, collected: Charts) -> str:
    """Make the section; nothing for a run without a privacy mechanism."""
    if not record.experiment.privacy.is_on:
        return ""
    units = [
        unit for unit in UNITS if any(unit in line.get("privacy", {}) for line in record.rounds)
    ]
    drawn = side_by_side(
        collected.figure(chart)
        for unit in units
        for chart in (epsilon_chart(record, unit), norm_chart(record, unit))
    )
    told = {unit: last_figures(record, unit) for unit in units}
    rows = [_row(unit, told[unit], MECHANISMS[mechanism_of(record, unit)]) for unit in units]
    budget = card(table(HEADINGS, rows)) if units else ""
    return f"{budget}{describe_secure(record)}{drawn}{make_assumptions(record)}"


MECHANISMS = {
    "server": "central: the server adds the noise",
    "client": "local: each client adds all of the noise",
    "shares": "distributed: each client adds a share of the noise",
    "model": "DP-SGD on trunk and heads",
    "trunk": "DP-SGD on the trunk, heads without noise",
}


def mechanism_of(record: RunRecord, unit: str) -> str:
    """Name what protects a unit, a key of `MECHANISMS`."""
    client, example = record.experiment.privacy.levels
    if unit == "client" and client is not None:
        return client.noise
    return example.covers if example is not None else ""


HEADINGS = (
    "unit", "mechanism", "epsilon", "median client", "budget", "delta", "noise multiplier",
    "max-norm, last",
)  # fmt: skip


def _row(unit: str, told: Figures, mechanism: str) -> list[str]:
    return [
        f"{UNITS[unit]} <small>of the client that paid most</small>",
        mechanism,
        f"<strong>{format_figure(told['epsilon'])}</strong>",
        format_figure(told["median-epsilon"]),
        NOTHING if told["budget"] is None else f"{told['budget']:g}",
        f"{told['delta']:g}",
        format_figure(told["noise-multiplier"]),
        format_figure(told["max-norm"]),
    ]


def last_figures(record: RunRecord, unit: str) -> Figures:
    """Take a unit's figures at the end, or of the last round of an unfinished run."""
    found: Figures = ((record.results or {}).get("privacy") or record.rounds[-1]["privacy"])[unit]
    return {**found, "max-norm": record.rounds[-1]["privacy"][unit]["max-norm"]}


def epsilon_chart(record: RunRecord, unit: str) -> Chart | None:
    """Draw epsilon over rounds, with the budget as a dashed line."""
    spent = {
        key: [
            (line["round"], line["privacy"][unit][key])
            for line in record.rounds
            if is_figure(line.get("privacy", {}).get(unit, {}).get(key))
        ]
        for key in ("epsilon", "median-epsilon")
    }
    if not spent["epsilon"]:
        return None
    traces = [curve("largest", *unzip(thin(spent["epsilon"])), "$c0")]
    if spent["median-epsilon"] != spent["epsilon"]:
        traces.append(curve("median client", *unzip(thin(spent["median-epsilon"])), "$c1"))
    budget = last_figures(record, unit)["budget"]
    dashed = "" if budget is None else f" The dashed line is the budget, {budget:g}."
    delta = last_figures(record, unit)["delta"]
    return Chart(
        title=f"Epsilon, {UNITS[unit]}",
        traces=traces,
        layout={**axes("round", zero=True), **reference_line(budget, "y")},
        note=f"Spent so far, at delta {delta:g}.{dashed}",
    )


def norm_chart(record: RunRecord, unit: str) -> Chart | None:
    """Draw what updates were clipped to; None where it never changed."""
    norms = [
        (line["round"], line["privacy"][unit]["max-norm"])
        for line in record.rounds
        if unit in line.get("privacy", {})
    ]
    if len({norm for _, norm in norms}) <= 1:
        return None
    return Chart(
        title="Clipping norm",
        traces=[curve("max-norm", *unzip(thin(norms)), "$c2")],
        layout=axes("round", zero=True),
        note="It follows a quantile of the updates' norms (adaptive clipping).",
    )


def describe_secure(record: RunRecord) -> str:
    """Say that the server saw sums alone, where it did."""
    if record.experiment.privacy.secure_aggregation is None:
        return ""
    text = "Updates were summed under secure aggregation: the server saw no single one."
    if not any(record.experiment.privacy.levels):
        text += " No noise was added to their sums, which have no epsilon."
    return card(note(text))


def make_assumptions(record: RunRecord) -> str:
    """List what the figures rest on."""
    from common.privacy.assumptions import assumptions

    told = (record.results or {}).get("privacy", {}).get("assumptions")
    items = "".join(f"<li>{escape(text)}</li>" for text in told or assumptions(record.experiment))
    return folded("What these figures rest on", f"<ul>{items}</ul>") if items else ""
