"""The charts of a search: its history, each setting against the figures, and the Pareto front."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from simulations.charts import Chart, Trace, curve, is_figure, reference_line
from simulations.tuning.space import Choice, Range, parse_space
from simulations.tuning.table import Outcome, label_of, setting_cells, short_setting

Trials = Sequence[Mapping[str, Any]]


def finished(outcome: Outcome) -> list[Mapping[str, Any]]:
    """List the trials that have figures."""
    return [trial for trial in outcome["trials"] if trial["values"]]


def value(trial: Mapping[str, Any], objective: Mapping[str, str]) -> float:
    """Take a trial's mean over seeds."""
    mean: float = trial["values"][objective["name"]]["mean"]
    return mean


def own_value(outcome: Outcome, objective: Mapping[str, str]) -> float | None:
    """Take that of the experiment's own settings, if they have one."""
    spread = outcome["own-settings"]["values"].get(objective["name"])
    return spread["mean"] if spread else None


def tell_settings(outcome: Outcome, trial: Mapping[str, Any]) -> str:
    """Write a trial's settings as simple HTML, for one that hovers."""
    cells = zip(outcome["space"], setting_cells(outcome, trial), strict=True)
    return "<br>".join([f"trial {trial['number']}", *(escape(f"{k} = {v}") for k, v in cells)])


def dots(
    outcome: Outcome, trials: Trials, x: Sequence[Any], y: Sequence[float], colour: str, name: str
) -> Trace:
    """Draw trials as dots that tell their settings."""
    return {
        "name": name,
        "x": x,
        "y": y,
        "text": [tell_settings(outcome, trial) for trial in trials],
        "type": "scatter",
        "mode": "markers",
        "marker": {"color": colour, "size": 8, "opacity": 0.8},
        "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
    }


def history_chart(outcome: Outcome, objective: Mapping[str, str]) -> Chart:
    """Draw every trial's figure, and the best so far."""
    trials = finished(outcome)
    values = [value(trial, objective) for trial in trials]
    best = max if objective["direction"] == "maximise" else min
    numbers = [trial["number"] for trial in trials]
    own = own_value(outcome, objective)
    return Chart(
        title=label_of(objective),
        traces=[
            dots(outcome, trials, numbers, values, "$c0", "trial"),
            curve("best so far", numbers, list(itertools.accumulate(values, best)), "$c1"),
        ],
        layout={
            "xaxis": {"title": {"text": "trial"}, **({"dtick": 1} if len(numbers) <= 10 else {})},
            **reference_line(own, "y"),
            "hovermode": "closest",
        },
        note="Trials that were pruned have no dot."
        + (" Dashed: the experiment's own settings." if is_figure(own) else ""),
    )


def slice_charts(outcome: Outcome, objective: Mapping[str, str]) -> Iterator[Chart]:
    """Draw a figure against each setting."""
    trials = finished(outcome)
    values = [value(trial, objective) for trial in trials]
    own = own_value(outcome, objective)
    for key, drawn in parse_space(outcome["space"]).items():
        texts = [trial["settings"][key] for trial in trials]
        across, places = place(drawn, texts)
        across["title"] = {"text": escape(key)}
        yield Chart(
            title=f"{key}: {label_of(objective)}",
            traces=[dots(outcome, trials, places, values, "$c0", "trial")],
            layout={"xaxis": across, **reference_line(own, "y"), "hovermode": "closest"},
        )


def place(drawn: Range | Choice, texts: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
    """Lay out the axis of a setting, and say where its values are on it.

    >>> place(Choice(("[8]", "[16]")), ["[16]"])[1], place(Range(1, 9), ["4"])[1]
    ([1.0], [4.0])
    """
    if isinstance(drawn, Range):
        return {"type": "log"} if drawn.log else {}, [float(text) for text in texts]
    count = len(drawn.values)
    axis = {
        "tickvals": list(range(count)),
        "ticktext": [escape(short_setting(text)) for text in drawn.values],
        "range": [-0.5, count - 0.5],
    }
    return axis, [float(drawn.values.index(text)) for text in texts]


def front_charts(outcome: Outcome) -> Iterator[Chart]:
    """Draw each two objectives against each other, those that none dominates in front."""
    trials = finished(outcome)
    front = [trial for trial in trials if trial["number"] in outcome["front"]]
    others = [trial for trial in trials if trial["number"] not in outcome["front"]]
    for one, other in itertools.combinations(outcome["objectives"], 2):
        ordered = sorted(front, key=lambda trial: value(trial, one))
        traces = [
            dots(outcome, group, [value(t, one) for t in group], [value(t, other) for t in group],
                 colour, name)
            for group, colour, name in ((others, "$muted", "dominated"), (ordered, "$c1", "front"))
        ]  # fmt: skip
        if len(outcome["objectives"]) == 2:  # a projection of more has no steps
            traces[1] |= {"mode": "lines+markers", "line": {"shape": stairs(one, other)}}
        own = (own_value(outcome, one), own_value(outcome, other))
        if is_figure(own[0]) and is_figure(own[1]):
            mark = curve("own settings", [own[0]], [own[1]], "$c2")
            traces.append({**mark, "marker": {"color": "$c2", "size": 12, "symbol": "diamond"}})
        yield Chart(
            title=f"{label_of(other)} against {label_of(one)}",
            traces=traces,
            layout={
                "xaxis": {"title": {"text": label_of(one)}},
                "yaxis": {"title": {"text": label_of(other)}},
                "hovermode": "closest",
            },
            height=340,
            note="Front: no trial is as good in all objectives and better in one.",
        )


def stairs(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    """Choose how the front's steps go: what lies beyond them is beaten by no trial.

    The front is drawn from the lowest to the highest figure of `one`. Where low is best, a trial
    holds to its right; where high is best, to its left.
    """
    return "hv" if one["direction"] == "minimise" else "vh"
