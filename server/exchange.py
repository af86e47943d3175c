"""One round's exchange with the clients: by messages, or with an engine that answers for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from server.bulk import BulkGrid, BulkReplies, ask_groups
from server.closing import NOBODY, UNUSABLE, Closing, Tally, warn
from server.patient_grid import PatientGrid
from server.replies import row_faults
from server.roster import Roster
from server.strategy import TrunkStrategy
from server.sums import SumTable


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
        loss: why the round is lost, which leaves the trunk as it was; empty where it is not.
        notes: what else the round's record is to tell of how trunks were combined.
        added: how many clients' reports were added up where `sums` is their sum alone; else None.
    """

    asked: int
    sums: SumTable
    trunk: dict[str, FloatArray] | None
    left_out: dict[str, str] = field(default_factory=dict)
    sent_bytes: int = 0
    received_bytes: int = 0
    loss: str = ""
    notes: Sequence[str] = ()
    added: int | None = None

    @property
    def answered(self) -> int:
        """How many clients' replies counted."""
        return len(self.sums.clients) if self.added is None else self.added


class Exchange(Protocol):
    """How a round reaches the clients.

    Attributes:
        strategy: combines their trunks.
    """

    strategy: TrunkStrategy

    def train(
        self, trunk: Mapping[str, FloatArray], instruction: Instruction, attempt: int = 0
    ) -> Outcome:
        """Have this round's clients train, and combine their trunks.

        Args:
            trunk: what is sent.
            instruction: of the round; `clients` is filled in.
            attempt: how often the round was asked before; each draws clients anew.
        """

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""


class MessageExchange:
    """A message to, and a reply from, each client, through the strategy's four hooks."""

    def __init__(self, grid: Grid, strategy: TrunkStrategy, roster: Roster, timeout_s: float):
        self.grid, self.strategy, self.roster = grid, strategy, roster
        self.timeout_s = timeout_s

    def train(
        self, trunk: Mapping[str, FloatArray], instruction: Instruction, attempt: int = 0
    ) -> Outcome:
        """Have this round's clients train, and combine their trunks."""
        number, self.strategy.attempt = instruction.round, attempt
        clients = self.strategy.choose(number)
        if not clients:
            return nobody(self.strategy.combine_nobody(number, trunk))
        tally = Tally(Closing.of(self.strategy.experiment.federation, len(clients)))
        arrays = pack_arrays(trunk)
        config = replace(instruction, clients=len(clients)).to_record()
        messages = list(self.strategy.configure_train(number, arrays, config, self.grid))
        replies = self._deliver(messages, tally)
        usable = replies
        if not tally.closing.is_plain:
            replies, usable = self._sort(replies, tally)
        if tally.loss:
            self.strategy.aggregate_evaluate(number, usable)  # figures only
            return replace(self._outcome(messages, replies, None, tally), loss=tally.loss)
        combined, _ = self.strategy.aggregate_train(number, replies)
        following = None if combined is None else unpack_arrays(combined)
        return told(self._outcome(messages, replies, following, tally), self.strategy)

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""
        number = instruction.round
        arrays, config = pack_arrays(trunk), instruction.to_record()
        messages = list(self.strategy.configure_evaluate(number, arrays, config, self.grid))
        tally = Tally(Closing(len(messages), len(messages)))
        replies = self._deliver(messages, tally)
        self.strategy.aggregate_evaluate(number, replies)
        return self._outcome(messages, replies, None, tally)

    def _deliver(self, messages: Sequence[Message], tally: Tally) -> list[Message]:
        """Send messages and collect the replies, in the order of their arrival."""
        if isinstance(self.grid, PatientGrid) and not tally.closing.is_plain:
            return self.grid.send_and_receive(
                messages,
                timeout=self.timeout_s,
                is_enough=lambda reply: self._take(reply, tally),
            )
        return list(self.grid.send_and_receive(messages, timeout=self.timeout_s))

    def _sort(
        self, replies: Sequence[Message], tally: Tally
    ) -> tuple[list[Message], list[Message]]:
        """Pick the replies that came before the round had closed, and of these the usable ones."""
        first: dict[str, Message] = {}
        for reply in replies:
            self._take(reply, tally)
            first.setdefault(self.roster.name_of(reply.metadata.src_node_id), reply)
        came = [reply for name, reply in first.items() if tally.has(name)]
        return came, [first[name] for name in tally.usable]

    def _take(self, reply: Message, tally: Tally) -> bool:
        """Count a reply, once; returns whether the round is closed."""
        name = self.roster.name_of(reply.metadata.src_node_id)
        if tally.is_closed or tally.has(name):
            return tally.is_closed
        return tally.take(name, self.strategy.find_fault(reply))

    def _outcome(
        self,
        messages: Sequence[Message],
        replies: Sequence[Message],
        trunk: dict[str, FloatArray] | None,
        tally: Tally,
    ) -> Outcome:
        last = self.strategy.last
        asked = {self.roster.name_of(message.metadata.dst_node_id) for message in messages}
        missing = tally.left_out(asked - {*last.examples, *last.left_out})
        warn(missing)
        # All messages of a round carry the same content.
        sent = len(messages) * size_bytes(messages[0].content) if messages else 0
        received = sum(size_bytes(reply.content) for reply in replies if reply.has_content())
        left_out = {**last.left_out, **missing}
        return Outcome(len(asked), SumTable.of(last.sums), trunk, left_out, sent, received)


class BulkExchange:
    """One call to an engine that answers for all clients of a round."""

    def __init__(self, grid: BulkGrid, strategy: TrunkStrategy, roster: Roster):
        self.grid, self.strategy, self.roster = grid, strategy, roster

    def train(
        self, trunk: Mapping[str, FloatArray], instruction: Instruction, attempt: int = 0
    ) -> Outcome:
        """Have this round's clients train, and combine their trunks."""
        self.strategy.attempt = attempt
        clients = self.strategy.choose(instruction.round)
        if not clients:
            return nobody(self.strategy.combine_nobody(instruction.round, trunk))
        instruction = replace(instruction, clients=len(clients))
        tally = Tally(Closing.of(self.strategy.experiment.federation, len(clients)))
        groups = self.strategy.address_train(clients, trunk)
        replies = ask_groups(
            lambda names, sent: self.grid.train_all(names, sent, instruction), groups, clients
        )
        missing: dict[str, str] = {}
        if replies.arrived is not None or not tally.closing.is_plain:
            replies, missing = close(replies, tally)
        following = None
        if tally.loss or not replies.clients:
            self.strategy.leave_out(replies)
            if not tally.loss:
                following = self.strategy.combine_nobody(instruction.round, trunk)
        else:
            following = self.strategy.combine(instruction.round, trunk, replies)
        outcome = self._outcome(len(clients), trunk, instruction, replies, following)
        outcome = replace(outcome, left_out={**outcome.left_out, **missing}, loss=tally.loss)
        return told(outcome, self.strategy)

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""
        clients, trunk = self.roster.names, self.strategy.evaluated(trunk)
        groups = self.strategy.address(clients, trunk)
        replies = ask_groups(
            lambda names, sent: self.grid.evaluate_all(names, sent, instruction), groups, clients
        )
        self.strategy.leave_out(replies)
        return self._outcome(len(clients), trunk, instruction, replies, None)

    def _outcome(
        self,
        asked: int,
        trunk: Mapping[str, FloatArray],
        instruction: Instruction,
        replies: BulkReplies,
        following: dict[str, FloatArray] | None,
    ) -> Outcome:
        """Count the bytes that messages would have carried."""
        sent = sum(array.nbytes for array in trunk.values()) + instruction.size_bytes()
        received = 0 if replies.rows is None else replies.rows.nbytes
        received += replies.sums.size_bytes() + len(replies.clients) * (len(EXAMPLES) + 8)
        left_out = dict(self.strategy.last.left_out)
        sums = replies.sums.without(left_out) if left_out else replies.sums
        return Outcome(asked, sums, following, left_out, sent * asked, received)


def told(outcome: Outcome, strategy: TrunkStrategy) -> Outcome:
    """Add what the strategy has to tell: why there is no next trunk, and its notes."""
    loss = outcome.loss or strategy.last.loss or (UNUSABLE if outcome.trunk is None else "")
    return replace(outcome, loss=loss, notes=tuple(strategy.last.notes))


def nobody(trunk: dict[str, FloatArray] | None) -> Outcome:
    """What comes of a round in which nobody can be asked; its next trunk, where it has one."""
    return Outcome(0, SumTable.of({}), trunk, loss=NOBODY if trunk is None else "")


def close(replies: BulkReplies, tally: Tally) -> tuple[BulkReplies, dict[str, str]]:
    """Keep the replies that were there when the round closed.

    Faulty ones among them are left to the strategy, which tells of them, unless the round is lost.

    Returns:
        These replies, and who was not among them and why.
    """
    faults = {**row_faults(replies), **replies.sums.faults()}
    times = replies.arrived
    for name in replies.clients if times is None else sorted(times, key=times.__getitem__):
        tally.take(name, faults.get(name))
    kept = {*tally.usable} if tally.loss else {*tally.usable, *tally.faults}
    missing = {n: why for n, why in tally.left_out(replies.clients).items() if n not in kept}
    warn(missing)
    return replies.only(kept), missing
