"""Task inference: which tasks does a client train? From its trunk update alone.

Where a client tells its labelled rows per task, as clients do unless ``privacy.counts`` is
'withheld', nobody need infer anything. Where it does not, its update tells: parts of the model that
belong to a task go back unmoved from a client that lacks it; and of the shared trunk, a probe
fitted on shadow clients tells the tasks' updates apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.seeding import numpy_generator
from common.sharing import task_of
from common.wire import FloatArray
from simulations.attacks.intervals import auc_with_interval, share
from simulations.attacks.shadows import (
    Shadows,
    auxiliary_rows,
    rows_per_shadow,
    select_tasks,
    unit_rows,
)
from simulations.attacks.truth import client_data
from simulations.attacks.wire import Wire

Matrix = NDArray[np.float64]
SOFTNESS, MOST_STEPS = 100.0, 2000  # of the logistic regressions


@dataclass(frozen=True)
class Settings:
    """How to infer.

    Attributes:
        shadows: how many shadow clients are trained.
        seed: draws their rows and tasks.
        rows: how many each has; None as `shadows.rows_per_shadow`.
    """

    shadows: int = 150
    seed: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class TaskLeak:
    """What was inferred, beside the truth.

    Attributes:
        clients: their names, K of them.
        tasks: names, T of them.
        scores: [K, T], the higher the surer that the client trains the task.
        truth: bool [K, T].
        parts: bool [K, T], what parts that belong to single tasks tell; None where none travel.
        figures: "probe" or "parts" -> task -> AUC, accuracy and the base rate; and under "set" how
            many clients' tasks were all right.
    """

    clients: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: Matrix
    truth: NDArray[np.bool_]
    parts: NDArray[np.bool_] | None
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


def infer_tasks(wire: Wire, number: int, settings: Settings | None = None) -> TaskLeak:
    """Infer the tasks of every client of a round.

    Args:
        wire: of a recorded run.
        number: the round.
        settings: of the attack.

    Raises:
        ConfigError: one task, no update of a single client, or no rows for shadow clients.
    """
    settings = settings or Settings()
    tasks, clients = tuple(wire.experiment.tasks), tuple(wire.clients(number))
    if len(tasks) < 2:
        raise ConfigError("task inference needs two tasks to tell apart; the experiment has one")
    wire.refuse_masked("which tasks a client trains", "there is nothing to probe")
    shadows = Shadows(wire, number, [n for n in wire.rounds if n < number])
    probe = fit_probe(shadows, tasks, settings)
    scores = probe(np.stack([shadows.seen(name) for name in clients]))
    held = [client_data(wire, name).train.labelled for name in clients]
    truth = np.array([[t in h and bool(h[t].any()) for t in tasks] for h in held])
    parts = tasks_from_parts(wire, number, clients, tasks)
    figures = {"probe": describe(tasks, scores, truth)}
    if parts is not None:
        figures["parts"] = describe(tasks, np.where(parts, 1.0, -1.0), truth)
    return TaskLeak(clients, tasks, scores, truth, parts, figures)


def fit_probe(
    shadows: Shadows, tasks: tuple[str, ...], settings: Settings
) -> Callable[[FloatArray], Matrix]:
    """Train shadow clients with drawn sets of tasks, of every size alike; returns what scores.

    A logistic regression for each task on updates brought to length 1. (Ridge regression did worse:
    an update of one task reaches far beyond those of several, from which a line is drawn.)
    """
    from sklearn.linear_model import LogisticRegression

    rows = auxiliary_rows(shadows.wire)
    size = rows_per_shadow(shadows.wire, shadows.number, len(rows), settings.rows)
    random = numpy_generator(settings.seed, "task-inference")
    updates, answers = [], []
    for _ in range(settings.shadows):
        held = random.permutation(len(tasks))[: random.integers(1, len(tasks) + 1)]
        chosen = rows.select(_index(random, len(rows), size))
        updates.append(shadows.update(select_tasks(chosen, {tasks[place] for place in held})))
        answers.append(np.isin(np.arange(len(tasks)), held))
    features, truth = unit_rows(np.stack(updates)), np.stack(answers)
    probes = [
        LogisticRegression(C=SOFTNESS, max_iter=MOST_STEPS).fit(features, truth[:, place])
        for place in range(len(tasks))
    ]

    def score(seen: FloatArray) -> Matrix:
        return np.stack([probe.decision_function(unit_rows(seen)) for probe in probes], axis=1)

    return score


def tasks_from_parts(
    wire: Wire, number: int, clients: tuple[str, ...], tasks: tuple[str, ...]
) -> NDArray[np.bool_] | None:
    """Say for each client which tasks' own parts it moved, [K, T]; None where none travel."""
    if not any(task_of(name) for name in wire.sent(number)):
        return None
    found = np.zeros((len(clients), len(tasks)), dtype=bool)
    for place, client in enumerate(clients):
        for name, update in wire.update(number, client).items():
            if (task := task_of(name)) in tasks and update.any():
                found[place, tasks.index(task)] = True
    return found


def describe(tasks: tuple[str, ...], scores: Matrix, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Describe how well scores [K, T] tell the truth [K, T]: by task, and the whole sets."""
    found: dict[str, Any] = {}
    for place, task in enumerate(tasks):
        own, right = truth[:, place], (scores[:, place] > 0) == truth[:, place]
        found[task] = {
            "auc": auc_with_interval(scores[:, place], own),
            "accuracy": share(int(right.sum()), len(right)),
            "base-rate": float(max(own.mean(), 1 - own.mean())),
        }
    sets = ((scores > 0) == truth).all(1)
    _, counts = np.unique(truth, axis=0, return_counts=True)
    base = float(counts.max() / len(truth))
    return {
        "tasks": found,
        "set": {"accuracy": share(int(sets.sum()), len(sets)), "base-rate": base},
    }


def _index(random: np.random.Generator, count: int, size: int) -> Any:
    import torch

    return torch.from_numpy(random.permutation(count)[:size])
