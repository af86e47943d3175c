"""Shadow clients: what rows of the attacker's own would have sent, and what one learns from that.

The attacker has rows of the same kind, labelled, that no client trained on. It trains on draws of
them exactly as a client does, from the trunk that was sent, and fits a probe from update to what it
drew. (Shokri et al., "Membership inference attacks against machine learning models", 2017, section
V-C, gave the idea its name.)
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.training import Trainer
from common.agreement import input_shapes
from common.clients import open_clients
from common.dataset import ClientData, Rows
from common.encoding import encode
from common.errors import ConfigError
from common.experiment import Experiment
from common.sharing import is_statistic
from common.wire import FloatArray
from simulations.attacks.truth import CPU, client_data, train_again
from simulations.attacks.wire import EVERYBODY, Wire, flatten

Matrix = NDArray[np.float64]
NAME = "shadow"
RIDGES = tuple(10.0**power for power in range(-6, 3))  # shares of the mean eigenvalue


def auxiliary_rows(wire: Wire) -> Rows:
    """Read the attacker's rows, with the labels of all tasks: held-out ones that nobody trained on.

    Raises:
        ConfigError: there are none.
    """
    experiment, trained = wire.experiment, set[bytes]()
    for name in open_clients(experiment).names:
        trained |= set(_keys(client_data(wire, name).train))
    if experiment.partition is not None:  # tasks that a client was denied are labelled at hand
        plain = experiment.partition.model_copy(update={"task_skew": "none"})
        experiment = experiment.model_copy(update={"partition": plain})
    source, parts = open_clients(experiment), []
    for name in source.names:
        data = encode(source.read(name), experiment, wire.agreement)
        for rows in data.splits.values():
            kept = [place for place, key in enumerate(_keys(rows)) if key not in trained]
            if kept:
                parts.append(rows.select(torch.tensor(kept)))
    if not parts:
        raise ConfigError(
            "shadow clients need rows that nobody trained on, and there are none: give the run a "
            "data.test share"
        )
    return Rows.join(parts)


def _keys(rows: Rows) -> list[bytes]:
    """Name rows by their inputs."""
    flat = rows.side_by_side(sorted(rows.inputs)).numpy()
    return [row.tobytes() for row in flat]


@dataclass
class Shadows:
    """Trains shadow clients for one round of a run.

    Attributes:
        wire: of the run.
        number: the round.
        rounds: those before it that a shadow client takes part in first, so that its heads are as
            old as a client's.
    """

    wire: Wire
    number: int
    rounds: Sequence[int] = ()

    def __post_init__(self) -> None:
        self.trainer = Trainer(self.wire.experiment, input_shapes(self.wire.agreement), CPU)
        sent = self.wire.sent(self.number)
        self.names = [name for name in sent if not is_statistic(name)]
        self._before = flatten(sent, self.names)

    def update(self, rows: Rows) -> FloatArray:
        """Train on rows as a client does; returns the update, [P]."""
        none = rows.select(slice(0))
        data = ClientData(NAME, {"train": rows, "validation": none, "test": none})
        own: dict[str, FloatArray] = {}
        for earlier in self.rounds:
            train_again(self.wire, self.trainer, data, earlier, own, EVERYBODY)
            own = {n: np.array(a) for n, a in self.trainer.own_arrays(data.tasks).items()}
        after = train_again(self.wire, self.trainer, data, self.number, own, EVERYBODY)
        return flatten(after, self.names) - self._before

    def seen(self, client: str) -> FloatArray:
        """Lay out the update on the wire of a client, [P]."""
        return flatten(self.wire.update(self.number, client), self.names)


def select_tasks(rows: Rows, tasks: Collection[str]) -> Rows:
    """Leave out the labels of other tasks."""
    return Rows(
        rows.inputs,
        {task: values for task, values in rows.targets.items() if task in tasks},
        {task: mask for task, mask in rows.labelled.items() if task in tasks},
    )


class Probe:
    """Ridge regression from updates, brought to length 1, to what is asked of them.

    In its dual form, since an update has more parameters than there are shadows; the ridge is the
    one of least error on shadows left out one by one (Allen 1974's PRESS, in closed form).

    Args:
        updates: [S, P].
        answers: [S, K].
    """

    def __init__(self, updates: FloatArray, answers: Matrix) -> None:
        rows = unit_rows(updates)
        self.mean, self.offset = rows.mean(0), answers.mean(0)
        self.rows = rows - self.mean
        values, vectors = np.linalg.eigh(self.rows @ self.rows.T)
        values = np.maximum(values, 0)
        centred, best = answers - self.offset, np.inf
        turned = vectors.T @ centred
        for ridge in (share * max(values.mean(), 1e-12) for share in RIDGES):
            weights = vectors @ (turned / (values + ridge)[:, None])
            left_out = weights / ((vectors**2) @ (1 / (values + ridge)))[:, None]
            error = float((left_out**2).mean())
            if error < best:
                best, self.weights = error, weights

    def answer(self, updates: FloatArray) -> Matrix:
        """Predict, [N, K], for updates [N, P]."""
        answers: Matrix = (
            unit_rows(updates) - self.mean
        ) @ self.rows.T @ self.weights + self.offset
        return answers


def unit_rows(updates: FloatArray) -> Matrix:
    """Bring updates [N, P] to length 1: of clipping, rates and numbers of rows, little is left."""
    rows = np.nan_to_num(np.asarray(updates, dtype=np.float64))
    unit: Matrix = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return unit


def rows_per_shadow(wire: Wire, number: int, limit: int, rows: int | None) -> int:
    """Choose how many rows a shadow client has.

    Args:
        wire: of the run.
        number: the round.
        limit: how many the attacker has.
        rows: as it is told; None for as many as the round's median client told, or, where counts
            are withheld, an equal share of the attacker's own.
    """
    if rows is not None:
        return min(limit, rows)
    counts = [wire.rows_of(number, name) for name in wire.clients(number)]
    told = [count for count in counts if count]
    guess = int(np.median(told)) if told else limit // max(1, len(counts))
    return min(limit, max(1, guess))


def targets_of(wire: Wire, number: int) -> list[str]:
    """Name what a round shows: its clients, or, summed securely, their mean alone."""
    return [EVERYBODY] if wire.is_summed_securely else wire.clients(number)


def class_counts(experiment: Experiment, rows: Rows, task: str) -> NDArray[np.int64]:
    """Count the labels of a task with classes, [classes]."""
    labels = rows.targets[task][rows.labelled[task]].long()
    classes = experiment.tasks[task].class_count or 2
    counts: NDArray[np.int64] = torch.bincount(labels, minlength=classes).numpy()
    return counts
