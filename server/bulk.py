"""Engines that answer for many clients at once.

An engine that trains a round's clients together has no use for a message to, and a reply from, each
of them. The round loop asks such an engine for the whole round; what is said in both directions is
what messages would have said.
"""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.wire import FloatArray, Instruction
from server.sums import SumTable, join_tables

Trunk = Mapping[str, FloatArray]

Arrival = tuple[float, int]  # seconds after the round's start, and what breaks ties


@dataclass(frozen=True)
class BulkReplies:
    """The replies of K clients.

    Attributes:
        clients: their names.
        examples: int64 [K], training rows.
        sums: what their metric records would hold.
        rows: float32 [K, Q], each client's shared parameters, flat, in the order of the trunk that
            was sent; None in an evaluation.
        arrived: when the replies came that came before the round's deadline, where the engine
            simulates that; None where all came at once.
        holds: bool [K, T], who has training labels of which task; None in an evaluation. Never
            told: clients that add securely know it themselves.
    """

    clients: Sequence[str]
    examples: NDArray[np.int64]
    sums: SumTable
    rows: FloatArray | None = None
    arrived: Mapping[str, Arrival] | None = None
    holds: NDArray[np.bool_] | None = None

    def only(self, clients: Collection[str]) -> "BulkReplies":
        """Keep the replies of these clients."""
        kept = np.array([name in clients for name in self.clients], dtype=bool)
        if kept.all():
            return self
        names = [name for name in self.clients if name in clients]
        dropped = {name: "" for name in self.clients if name not in clients}
        rows = None if self.rows is None else self.rows[kept]
        holds = None if self.holds is None else self.holds[kept]
        sums = self.sums.without(dropped)
        return BulkReplies(names, self.examples[kept], sums, rows, holds=holds)


class BulkGrid(Grid):
    """A grid that can also run a whole round."""

    @abstractmethod
    def train_all(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Train these clients on the trunk; they answer together."""

    @abstractmethod
    def evaluate_all(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Evaluate the trunk at these clients."""


def ask_groups(
    ask: Callable[[Sequence[str], Trunk], BulkReplies],
    groups: Sequence[tuple[Sequence[str], Trunk]],
    clients: Sequence[str],
) -> BulkReplies:
    """Ask groups of clients one after another, each for its own trunk, and join their replies.

    Args:
        ask: asks the clients of one group; its rows are good until its next call.
        groups: names and trunk, group by group.
        clients: the names of all groups, in the order that the replies are to have.
    """
    if len(groups) == 1:
        return ask(*groups[0])
    answers: list[BulkReplies] = []
    for names, trunk in groups:
        replies = ask(names, trunk)
        kept = None if replies.rows is None else replies.rows.copy()
        answers.append(replace(replies, rows=kept))
    came = [name for replies in answers for name in replies.clients]
    order = np.array([came.index(name) for name in clients])
    rows = [replies.rows for replies in answers if replies.rows is not None]
    holds = [replies.holds for replies in answers if replies.holds is not None]
    return BulkReplies(
        clients,
        np.concatenate([replies.examples for replies in answers])[order],
        join_tables([replies.sums for replies in answers]).ordered(order),
        np.concatenate(rows)[order] if rows else None,
        _join_arrivals(answers),
        np.concatenate(holds)[order] if holds else None,
    )


def _join_arrivals(answers: Sequence[BulkReplies]) -> dict[str, Arrival] | None:
    known = [replies.arrived for replies in answers if replies.arrived is not None]
    return {name: time for times in known for name, time in times.items()} if known else None
