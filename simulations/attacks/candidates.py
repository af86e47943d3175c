"""Rows whose membership is asked: those a client trained on, and those it held out.

Half of what each client held out is the attacker's own: on it a server fits heads. The other half
stands beside the training rows as rows that were not seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.cells import list_names
from common.clients import open_clients
from common.errors import ConfigError
from common.experiment import Experiment
from common.preparation import PreparedClient, UnusableClientError, prepare
from common.seeding import numpy_generator

LEAST = 2  # members, and others, of all clients together

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """One client's rows, divided for an attack.

    Attributes:
        prepared: the client's raw rows.
        rows: [N] numbers of the rows in question, rising.
        members: [N], whether the attacked run trained on them.
        auxiliary: numbers of the attacker's own rows, rising.
    """

    prepared: PreparedClient
    rows: IndexArray
    members: BoolArray
    auxiliary: IndexArray

    def as_attacked(self) -> PreparedClient:
        """Divide the rows as the attacked run did, with the rows in question in place of a test."""
        return self.trained_on(self.members)

    def trained_on(self, chosen: BoolArray) -> PreparedClient:
        """Let a client train on some of the rows in question, [N], and hold the others out.

        Its "test" rows are all of them, in order, and its "validation" rows the attacker's; tasks
        that no chosen row has a label for are left out.
        """
        train = self.rows[chosen]
        held = {n: t for n, t in self.prepared.targets.items() if t.labelled[train].any()}
        splits = {"train": train, "validation": self.auxiliary, "test": self.rows}
        return replace(self.prepared, splits=splits, targets=held)


def divide_clients(experiment: Experiment) -> dict[str, Candidates]:
    """Read and divide all clients' rows as the run did.

    Raises:
        ConfigError: no rows were held out, or hardly any.
        DataError: the run's data cannot be read any more.
    """
    source = open_clients(experiment)
    found = {}
    for name in source.names:
        try:
            found[name] = divide(prepare(source.read(name), experiment), experiment.seed)
        except UnusableClientError:  # the run left it out
            continue
    others = sum(int((~c.members).sum()) for c in found.values())
    if others < LEAST:
        held = sum(len(c.rows) - int(c.members.sum()) + len(c.auxiliary) for c in found.values())
        raise ConfigError(
            f"the run must have held out rows to compare members with, got {held} of "
            f"{sum(len(c.rows) + len(c.auxiliary) for c in found.values())} (data.test "
            f"{experiment.data.test:g}, data.validation {experiment.data.validation:g}); run it "
            "with a larger data.test"
        )
    return found


def divide(prepared: PreparedClient, seed: int) -> Candidates:
    """Divide one client's rows; half of those held out, drawn by the seed, are the attacker's."""
    train = prepared.splits["train"]
    held = np.sort(np.concatenate([prepared.splits["validation"], prepared.splits["test"]]))
    drawn = numpy_generator(seed, "attack", "auxiliary", prepared.name).permutation(len(held))
    auxiliary = np.sort(held[drawn[: len(held) // 2]])
    rows = np.sort(np.concatenate([train, np.setdiff1d(held, auxiliary)]))
    return Candidates(prepared, rows, np.isin(rows, train), auxiliary)


def draw_halves(
    candidates: Mapping[str, Candidates], shadows: int, seed: int
) -> dict[str, BoolArray]:
    """Let each shadow federation train on half of the rows: client -> [K, N].

    Every row is in half of the shadow federations, rounded down. A client of which one would have
    no row, or no label, trains on one that has.
    """
    drawn = {}
    for name, own in candidates.items():
        keys = numpy_generator(seed, "attack", "halves", name).random((shadows, len(own.rows)))
        chosen = keys.argsort(0).argsort(0) < shadows // 2
        labelled = np.logical_or.reduce(
            [target.labelled[own.rows] for target in own.prepared.targets.values()]
        )
        for row in chosen:
            if not row[labelled].any():
                row[np.flatnonzero(labelled)[0]] = True
        drawn[name] = chosen
    return drawn


def require_kept(names: Mapping[str, Candidates], kept: Mapping[str, object], folder: str) -> None:
    """Refuse a run that does not have what its clients keep at home.

    Raises:
        ConfigError: it has none, or not of a client that is attacked.
    """
    missing = [name for name in names if name not in kept]
    if len(missing) == len(names):
        raise ConfigError(
            f"{folder} must hold what clients keep at home for an attack by an insider, got "
            "nothing; use --attacker server, or a run by --engine loopback or batched"
        )
    if missing:
        raise ConfigError(
            f"{folder} must hold what every client keeps at home for an attack by an insider, "
            f"lacks {list_names(missing)}, who took part in no round; use --attacker server, or "
            "resume the run for more rounds"
        )
