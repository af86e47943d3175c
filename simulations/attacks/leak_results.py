"""Figures of label leakage and task inference as files, tables and pages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.json_gaps import without_gaps
from simulations.attacks import labels, task_inference
from simulations.attacks.results import tell, write_attack_page, write_figures
from simulations.attacks.wire import Wire

LABELS, TASKS = "labels", "tasks"
MEAN = "the round's mean"
BY = {
    "head": "update of the head's last bias",
    "probe": "probe on trunk updates",
    "parts": "parts of tasks that moved",
}
Table = tuple[list[str], list[list[str]]]


def describe_labels(
    wire: Wire, number: int, settings: labels.Settings, leaks: Sequence[labels.LabelLeak]
) -> dict[str, Any]:
    """Collect what attack-labels.json holds."""
    tasks = {
        leak.task: {
            "by": leak.by,
            "accuracy": leak.accuracy,
            "clients": {
                name or MEAN: {"found": found, "truth": truth}
                for name, found, truth in zip(
                    leak.clients, leak.found.tolist(), leak.truth.tolist(), strict=True
                )
            },
        }
        for leak in leaks
    }
    return _content(wire, LABELS, number, asdict(settings), {"tasks": tasks})


def describe_tasks(
    wire: Wire, number: int, settings: task_inference.Settings, leak: task_inference.TaskLeak
) -> dict[str, Any]:
    """Collect what attack-tasks.json holds."""
    clients = {
        name: {
            "scores": dict(zip(leak.tasks, scores, strict=True)),
            "trains": [task for task, own in zip(leak.tasks, held, strict=True) if own],
        }
        for name, scores, held in zip(
            leak.clients, leak.scores.tolist(), leak.truth.tolist(), strict=True
        )
    }
    told = wire.experiment.privacy.counts == "sent"
    own = {"figures": leak.figures, "clients": clients, "told": told}
    return _content(wire, TASKS, number, asdict(settings), own)


def _content(
    wire: Wire, kind: str, number: int, settings: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    content = {
        "kind": kind,
        "run": wire.run.name,
        "experiment": wire.experiment.name,
        "round": number,
        "settings": dict(settings),
        **own,
    }
    gapless: dict[str, Any] = without_gaps(content)
    return gapless


def labels_table(figures: Mapping[str, Any]) -> Table:
    """Lay out the share of labels that are right, by task."""
    rows = [
        [
            task,
            BY[own["by"]],
            tell(own["accuracy"]["attack"], 3),
            tell(own["accuracy"]["prior"], 3),
            str(own["accuracy"]["attack"]["count"]),
        ]
        for task, own in figures["tasks"].items()
    ]
    return ["task", "by", "labels right", "prior", "clients"], rows


def tasks_table(figures: Mapping[str, Any]) -> Table:
    """Lay out how well each task's clients are told from the others."""
    rows = []
    for by, own in figures["figures"].items():
        for task, found in own["tasks"].items():
            chance = f"{found['base-rate']:.3f}"
            rows.append([task, BY[by], tell(found["auc"], 3), tell(found["accuracy"], 3), chance])
        base = f"{own['set']['base-rate']:.3f}"
        rows.append(["all of a client's tasks", BY[by], "-", tell(own["set"]["accuracy"], 3), base])
    return ["task", "by", "AUC", "accuracy", "base rate"], rows


def labels_notes(figures: Mapping[str, Any]) -> list[str]:
    """Say what the figures mean."""
    return [
        "Labels right: share of a client's labels that the counts found get right, mean over "
        "clients with its 95 % interval. Prior: the same for the class shares of rows that nobody "
        "trained on.",
    ]


def tasks_notes(figures: Mapping[str, Any]) -> list[str]:
    """Say what the figures mean."""
    notes = [
        "AUC over clients: 0.5 is chance, 1 is perfect. Accuracy beside the base rate, which is "
        "what the commonest answer gets right. Intervals are 95 %, over clients.",
    ]
    found = [task for by in figures["figures"].values() for task in by["tasks"].values()]
    if any(task["auc"]["value"] is None for task in found):
        notes.append("No AUC of a task that all clients train, or none: nothing is told apart.")
    if figures["told"]:
        notes.append(
            "The clients of this run told the server their labelled rows per task, so it need not "
            "infer them: privacy.counts = 'withheld' keeps them at home."
        )
    return notes


def write_labels(out: Path, figures: Mapping[str, Any]) -> list[Path]:
    """Write figures and page of label leakage; returns their paths."""
    by = {own["by"] for own in figures["tasks"].values()}
    lead = "Counts of a client's labels, inferred from what it sent."
    facts = {"round": figures["round"], "by": ", ".join(BY[one] for one in sorted(by))}
    title = f"{figures['experiment']}: label leakage"
    tables = [("Labels", *labels_table(figures))]
    for task, own in figures["tasks"].items():
        rows = [
            [name, str(counts["found"]), str(counts["truth"])]
            for name, counts in own["clients"].items()
        ]
        tables.append((f"Counts of {task}, by class", ["client", "found", "true"], rows))
    path = write_figures(out, LABELS, figures)
    notes = labels_notes(figures)
    return [path, write_attack_page(out, LABELS, title, lead, facts, tables, notes)]


def write_tasks(out: Path, figures: Mapping[str, Any]) -> list[Path]:
    """Write figures and page of task inference; returns their paths."""
    lead = "Which tasks a client trains, inferred from its update."
    facts = {"round": figures["round"], "clients": len(figures["clients"])}
    title = f"{figures['experiment']}: task inference"
    rows = [
        [name, *(f"{score:+.2f}" for score in own["scores"].values()), ", ".join(own["trains"])]
        for name, own in figures["clients"].items()
    ]
    tasks = list(next(iter(figures["clients"].values()))["scores"])
    tables = [
        ("Tasks", *tasks_table(figures)),
        ("Scores of the probe", ["client", *tasks, "trains"], rows),
    ]
    path = write_figures(out, TASKS, figures)
    notes = tasks_notes(figures)
    return [path, write_attack_page(out, TASKS, title, lead, facts, tables, notes)]
