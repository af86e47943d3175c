"""The report's chart of where a round's time went, of a run that was asked to measure it."""

import json
from pathlib import Path

from common.errors import CheckpointError
from simulations.charts import Chart
from simulations.formats import format_count, format_seconds

FILE = "profile.json"  # as `fedmtl simulate --profile` writes it


def profile_chart(run: Path) -> Chart | None:
    """Draw the mean time of each section of a round; None where it was not measured.

    Raises:
        CheckpointError: profile.json cannot be read.
    """
    if not (run / FILE).is_file():
        return None
    try:
        profile = json.loads((run / FILE).read_text(encoding="utf-8"))
        shown = profile["others"] or profile["first"]
        if shown is None:
            return None
        rounds = shown["rounds"]
        sections = {name: own["seconds"] / rounds for name, own in shown["sections"].items()}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run / FILE} cannot be read: {error!r}; remove it, or measure anew with --profile"
        ) from error
    names = sorted(sections, key=lambda name: sections[name])
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [sections[name] for name in names],
        "y": names,
        "marker": {"color": "$c2"},
        "hovertemplate": "%{y} %{x:.3s}s<extra></extra>",
    }
    whole = format_seconds(shown["seconds"] / rounds)
    return Chart(
        title="Where a round's time went",
        traces=[bars],
        layout={
            "xaxis": {"title": {"text": "mean per round"}, "tickformat": "~s", "ticksuffix": "s"},
            "yaxis": {"type": "category"},
            "hovermode": "closest",
        },
        height=110 + 24 * len(names),
        note=f"Mean of {format_count(rounds, 'round')}, {whole} each, by profile.json.",
    )
