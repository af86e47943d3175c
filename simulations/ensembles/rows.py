"""The rows that an ensemble may be judged on: those that no member has learned from.

A split depends on `Experiment.data_seed`. Where it differs between runs, a test row of one is a
training row of another, whose answer would then be half a memory, and the ensemble's gain a leak.
So a row counts as a test row where it is one, of the same client, in every run. It counts as a
validation row likewise; by those members may be weighted, so they are not test rows as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import ConfigError
from common.splits import IndexArray
from simulations.ensembles.members import Member

JUDGED = ("validation", "test")


@dataclass(frozen=True)
class SharedRows:
    """Rows that are in one split in every run.

    Attributes:
        numbers: split of `JUDGED` -> client -> int64 [n] numbers in the undealt data, rising; the
            clients that have such rows, the same for both splits.
        held: split -> number of such rows of each run alone.
    """

    numbers: Mapping[str, Mapping[str, IndexArray]]
    held: Mapping[str, tuple[int, ...]]

    def count(self, split: str) -> int:
        """Count the rows of a split."""
        return sum(map(len, self.numbers[split].values()))


def share_rows(members: Sequence[Member]) -> SharedRows:
    """Find the rows that are validation rows, and those that are test rows, in every run.

    Raises:
        ConfigError: no test row is there, or left.
    """
    clients = [name for name in members[0].clients if all(name in m.clients for m in members)]
    found = {name: {s: _in_all(members, name, s) for s in JUDGED} for name in clients}
    found = {name: own for name, own in found.items() if any(map(len, own.values()))}
    numbers = {s: {name: own[s] for name, own in found.items()} for s in JUDGED}
    held = {
        split: tuple(sum(len(own.splits[split]) for own in m.clients.values()) for m in members)
        for split in JUDGED
    }
    shared = SharedRows(numbers, held)
    if not all(held["test"]):
        without = [
            member.name for member, rows in zip(members, held["test"], strict=True) if not rows
        ]
        raise ConfigError(
            f"RUN must name runs with test rows, got none in {', '.join(without)}; train with "
            "data.test above 0"
        )
    if not shared.count("test"):
        seeds = ", ".join(str(m.experiment.data_seed) for m in members)
        raise ConfigError(
            "the runs must share test rows, which none of them trained on, got 0 shared of "
            f"{', '.join(map(str, held['test']))} test rows; rows are dealt and split by seed "
            f"{seeds}: train runs that have one data.seed, and other seeds"
        )
    return shared


def own_places(member: Member, client: str, numbers: IndexArray) -> IndexArray:
    """Find rows, by their numbers in the undealt data, in the table of a run's client."""
    return np.searchsorted(member.numbers[client], numbers)


def _in_all(members: Sequence[Member], client: str, split: str) -> IndexArray:
    found = [m.numbers[client][m.clients[client].splits[split]] for m in members]
    shared = np.sort(found[0])
    for numbers in found[1:]:
        shared = np.intersect1d(shared, numbers)
    return shared
