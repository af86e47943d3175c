"""Label leakage: what labels does a client hold, by its update?

Where heads travel too, the update of a head's last bias tells: its gradient is
``mean over rows (p_c - y_c)``. Of one row, the right class alone has a negative one (Zhao, Mopuri &
Bilen, "iDLG", 2020, eq. 4); of several, the counts are ``n (p_c - g_c)``, with the predicted shares
``p_c`` estimated on rows of the attacker's own (Wainakh et al., "User-level label leakage from
gradients in federated learning", PoPETs 2022, section 4, corrects its counts likewise). Where heads
stay home, a probe is fitted on the trunk updates of shadow clients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.dataset import Rows
from common.errors import ConfigError
from common.sections.rows import WITH_CLASSES
from common.seeding import numpy_generator
from simulations.attacks.guesses import make_model
from simulations.attacks.intervals import bootstrap, share
from simulations.attacks.observed import Observed, observe
from simulations.attacks.shadows import (
    Probe,
    Shadows,
    auxiliary_rows,
    class_counts,
    rows_per_shadow,
    targets_of,
)
from simulations.attacks.truth import trained_rows
from simulations.attacks.wire import Wire

Matrix = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """How to look for labels.

    Attributes:
        by: "auto": "head" where it travels, else "probe"; or one of the two.
        shadows: how many shadow clients the probe is fitted on.
        seed: draws their rows.
        rows: how many a client has, or a round's clients together; None for as many as it tells.
    """

    by: str = "auto"
    shadows: int = 150
    seed: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class LabelLeak:
    """What was found of one task, beside the truth.

    Attributes:
        task: its name.
        by: "head" or "probe".
        clients: names, K of them; `EVERYBODY` for a round's mean.
        found: int64 [K, classes], counts.
        truth: int64 [K, classes].
        accuracy: share of labels that the counts get right, ``sum_c min(found, truth) / rows``,
            mean over clients with its interval: of the attack; and of the prior, the counts that
            the attacker's own rows suggest.
    """

    task: str
    by: str
    clients: tuple[str, ...]
    found: Counts
    truth: Counts
    accuracy: dict[str, dict[str, Any]]


def leak_labels(wire: Wire, number: int, settings: Settings | None = None) -> list[LabelLeak]:
    """Look for the labels of every client of a round, of every task with classes.

    Args:
        wire: of a recorded run.
        number: the round.
        settings: of the attack.

    Raises:
        ConfigError: no task has classes, or the head that is to tell does not travel.
    """
    settings = settings or Settings()
    kinds = {name: task.kind for name, task in wire.experiment.tasks.items()}
    tasks = [name for name, kind in kinds.items() if kind in WITH_CLASSES]
    if not tasks:
        raise ConfigError("label leakage needs a multiclass or a binary task; there is none")
    own = auxiliary_rows(wire)
    by = choose(wire, number, tasks[0], settings.by)
    shares = _by_head if by == "head" else _by_probe
    found = shares(wire, number, tasks, own, settings)
    return [judge(wire, number, task, by, found[task], own) for task in tasks]


def choose(wire: Wire, number: int, task: str, by: str) -> str:
    """Say what is to tell the labels.

    Raises:
        ConfigError: it cannot.
    """
    travels = any(name.startswith(f"heads.task-{task}.") for name in wire.sent(number))
    if by == "auto":
        return "head" if travels else "probe"
    if by not in ("head", "probe"):
        raise ConfigError(f"--by must be auto, head or probe, got '{by}'")
    if by == "head" and not travels:
        raise ConfigError(
            "--by head needs heads that travel, and those of this run stay home (federation."
            f"algorithm '{wire.experiment.federation.algorithm}'); take --by probe"
        )
    return by


def _by_head(
    wire: Wire, number: int, tasks: list[str], own: Rows, settings: Settings
) -> dict[str, dict[str, Matrix]]:
    """Estimate class shares from the last biases: task -> client -> [classes]."""
    found: dict[str, dict[str, Matrix]] = {task: {} for task in tasks}
    for client in targets_of(wire, number):
        observed = observe(wire, number, client, settings.rows)
        for task in tasks:
            found[task][client] = shares_by_head(observed, task, own)
    return found


def shares_by_head(observed: Observed, task: str, own: Rows) -> Matrix:
    """Estimate the class shares behind an update from the head's last bias, [classes].

    The predicted shares are those of the model that was sent and of the one that came back, midway:
    between them lie the client's local steps.
    """
    gradient = observed.gradient[last_bias(observed, task)].numpy() / observed.weights[task]
    is_binary = observed.experiment.tasks[task].kind == "binary"
    if is_binary:
        gradient = np.concatenate([-gradient, gradient])
    if observed.rows == 1 and observed.steps == 1:
        one_row: Matrix = np.eye(len(gradient))[int(np.argmin(gradient))]
        return one_row
    shares: Matrix = predicted_shares(observed, task, own) - gradient
    return shares


def last_bias(observed: Observed, task: str) -> str:
    """Name the bias of a head's last layer."""
    names = [n for n in observed.update if n.startswith(f"heads.task-{task}.")]
    biases = [n for n in names if n.endswith(".bias")]
    return max(biases, key=lambda name: int(name.split(".")[-2]))


def predicted_shares(observed: Observed, task: str, own: Rows) -> Matrix:
    """Average what the model predicts of the attacker's own rows, [classes]."""
    model = make_model(observed)
    inputs = {name: values.double() for name, values in own.inputs.items()}
    parts = []
    for moved in (0.0, 1.0):
        arrays = {
            name: value + moved * observed.update[name] if name in observed.update else value
            for name, value in observed.received.items()
        }
        with torch.no_grad():
            outputs, _ = model.call_with(arrays, inputs, (task,))
        logits = outputs[task]
        if observed.experiment.tasks[task].kind == "binary":
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        parts.append(logits.softmax(1).mean(0).numpy())
    shares: Matrix = np.mean(parts, axis=0)
    return shares


def _by_probe(
    wire: Wire, number: int, tasks: list[str], own: Rows, settings: Settings
) -> dict[str, dict[str, Matrix]]:
    """Estimate class shares by a probe on shadow clients: task -> client -> [classes]."""
    wire.refuse_masked("the trunk update of a single client", "there is nothing to probe")
    shadows = Shadows(wire, number, [n for n in wire.rounds if n < number])
    size = rows_per_shadow(wire, number, len(own), settings.rows)
    random, updates = numpy_generator(settings.seed, "label-leakage"), []
    drawn: dict[str, list[Matrix]] = {task: [] for task in tasks}
    for count in range(settings.shadows):
        skewed = tasks[count % len(tasks)]  # each task in turn has its classes skewed
        rows = own.select(torch.from_numpy(draw_skewed(random, own, skewed, size)))
        updates.append(shadows.update(rows))
        for task in tasks:
            counts = class_counts(wire.experiment, rows, task)
            drawn[task].append(counts / max(counts.sum(), 1))
    clients = targets_of(wire, number)
    seen = np.stack([shadows.seen(client) for client in clients])
    found = {}
    for task in tasks:
        answers = Probe(np.stack(updates), np.stack(drawn[task])).answer(seen)
        found[task] = dict(zip(clients, answers, strict=True))
    return found


def draw_skewed(random: np.random.Generator, rows: Rows, task: str, size: int) -> Counts:
    """Draw rows whose class shares are themselves drawn, from a flat Dirichlet: int64 [size]."""
    labelled = np.flatnonzero(rows.labelled[task].numpy())
    labels = rows.targets[task].numpy()[labelled]
    classes, counts = np.unique(labels, return_counts=True)
    wanted = random.dirichlet(np.ones(len(classes))) / counts
    chances = wanted[np.searchsorted(classes, labels)]
    # With replacement: a class may be rarer among the attacker's rows than it is to be here.
    drawn: Counts = labelled[random.choice(len(labelled), size, p=chances / chances.sum())]
    return drawn


def judge(
    wire: Wire, number: int, task: str, by: str, shares: Mapping[str, Matrix], own: Rows
) -> LabelLeak:
    """Turn class shares into counts, and compare with the true ones and with the prior."""
    prior = class_counts(wire.experiment, own, task)
    found, expected, truth, clients = [], [], [], []
    for client, estimate in shares.items():
        rows = trained_rows(wire, number, client)
        if task not in rows.targets or not (total := int(rows.labelled[task].sum())):
            continue
        clients.append(client)
        truth.append(class_counts(wire.experiment, rows, task))
        found.append(whole_counts(estimate, total))
        expected.append(whole_counts(prior / max(prior.sum(), 1), total))
    if not clients:
        raise ConfigError(f"nobody in round {number} has a label of task '{task}'")
    accuracy = {"attack": overlap(found, truth), "prior": overlap(expected, truth)}
    return LabelLeak(task, by, tuple(clients), np.stack(found), np.stack(truth), accuracy)


def whole_counts(shares: Matrix, total: int) -> Counts:
    """Turn estimated shares into counts that add up: negative ones are 0, largest rest first.

    >>> whole_counts(np.array([0.5, -0.1, 0.26]), 4).tolist()
    [3, 0, 1]
    """
    kept = np.maximum(np.nan_to_num(shares), 0)
    kept = kept if kept.sum() > 0 else np.ones_like(kept)
    exact = kept / kept.sum() * total
    counts: Counts = np.floor(exact).astype(np.int64)
    rest = np.argsort(-(exact - counts), kind="stable")[: total - counts.sum()]
    counts[rest] += 1
    return counts


def overlap(found: list[Counts], truth: list[Counts]) -> dict[str, Any]:
    """Describe the share of labels that counts get right, mean over clients with its interval."""
    shares = [
        float(np.minimum(one, other).sum() / other.sum())
        for one, other in zip(found, truth, strict=True)
    ]
    if set(shares) <= {0.0, 1.0}:  # right or wrong: a share of the clients
        return share(sum(shares), len(shares))
    return bootstrap(shares)
