"""One round's exchange with the clients: by messages, or with an engine that answers for all."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from common.wire import (
    EXAMPLES,
    FloatArray,
    Instruction,
    pack_arrays,
    size_bytes,
    unpack_arrays,
)
from server.bulk import BulkGrid, BulkReplies
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable

logger = logging.getLogger("fedmtl.server")
SILENT = "no answer in time"


@dataclass(frozen=True)
class Outcome:
    """What came of one exchange.

    Attributes:
        asked: number of clients asked.
        sums: what the accepted clients reported.
        trunk: the next trunk; None where there is none.
        left_out: other clients -> why.
        sent_bytes: payload sent, over all clients.
        received_bytes: payload received.
    """

    asked: int
    sums: SumTable
    trunk: dict[str, FloatArray] | None
    left_out: dict[str, str] = field(default_factory=dict)
    sent_bytes: int = 0
    received_bytes: int = 0


class Exchange(Protocol):
    """How a round reaches the clients."""

    def train(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have this round's clients train, and combine their trunks."""

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""


class MessageExchange:
    """A message to, and a reply from, each client, through the strategy's four hooks."""

    def __init__(self, grid: Grid, strategy: TrunkStrategy, roster: Roster, timeout_s: float):
        self.grid, self.strategy, self.roster = grid, strategy, roster
        self.timeout_s = timeout_s

    def train(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have this round's clients train, and combine their trunks."""
        number = instruction.round
        arrays, config = pack_arrays(trunk), instruction.to_record()
        messages = list(self.strategy.configure_train(number, arrays, config, self.grid))
        replies = self._deliver(messages)
        combined, _ = self.strategy.aggregate_train(number, replies)
        following = None if combined is None else unpack_arrays(combined)
        return self._outcome(messages, replies, following)

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""
        number = instruction.round
        arrays, config = pack_arrays(trunk), instruction.to_record()
        messages = list(self.strategy.configure_evaluate(number, arrays, config, self.grid))
        replies = self._deliver(messages)
        self.strategy.aggregate_evaluate(number, replies)
        return self._outcome(messages, replies, None)

    def _deliver(self, messages: Sequence[Message]) -> list[Message]:
        return list(self.grid.send_and_receive(messages, timeout=self.timeout_s))

    def _outcome(
        self,
        messages: Sequence[Message],
        replies: Sequence[Message],
        trunk: dict[str, FloatArray] | None,
    ) -> Outcome:
        last = self.strategy.last
        asked = {self.roster.name_of(message.metadata.dst_node_id) for message in messages}
        silent = dict.fromkeys(sorted(asked - {*last.examples, *last.left_out}), SILENT)
        for name, reason in silent.items():
            logger.warning("%s left out: %s", name, reason)
        # All messages of a round carry the same content.
        sent = len(messages) * size_bytes(messages[0].content) if messages else 0
        received = sum(size_bytes(reply.content) for reply in replies if reply.has_content())
        left_out = {**last.left_out, **silent}
        return Outcome(len(asked), SumTable.of(last.sums), trunk, left_out, sent, received)


class BulkExchange:
    """One call to an engine that answers for all clients of a round."""

    def __init__(self, grid: BulkGrid, strategy: TrunkStrategy, roster: Roster):
        self.grid, self.strategy, self.roster = grid, strategy, roster

    def train(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have this round's clients train, and combine their trunks."""
        clients = self.strategy.choose(instruction.round)
        replies = self.grid.train_all(clients, trunk, instruction)
        following = self.strategy.combine(instruction.round, trunk, replies)
        return self._outcome(clients, trunk, instruction, replies, following)

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""
        clients = self.roster.names
        replies = self.grid.evaluate_all(clients, trunk, instruction)
        self.strategy.leave_out(replies)
        return self._outcome(clients, trunk, instruction, replies, None)

    def _outcome(
        self,
        clients: Sequence[str],
        trunk: Mapping[str, FloatArray],
        instruction: Instruction,
        replies: BulkReplies,
        following: dict[str, FloatArray] | None,
    ) -> Outcome:
        """Count the bytes that messages would have carried."""
        sent = sum(array.nbytes for array in trunk.values()) + instruction.size_bytes()
        received = 0 if replies.rows is None else replies.rows.nbytes
        received += replies.sums.size_bytes() + len(clients) * (len(EXAMPLES) + 8)
        left_out = dict(self.strategy.last.left_out)
        sums = replies.sums.without(left_out) if left_out else replies.sums
        return Outcome(len(clients), sums, following, left_out, sent * len(clients), received)
