"""A round in which the server learns sums over clients alone: by messages, or in one process.

`SecureExchange` runs the four stages of `server.secure_stages`. `SecureBulkExchange` belongs to an
engine that has all clients in its own process: it adds up the very integers that clients would
mask, without masks, which cancel exactly; there is nobody there to hide them from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid

from common.secure_aggregation.contribution import (
    adds_sums,
    settings_of,
)
from common.secure_aggregation.graph import group_size
from common.secure_aggregation.grids import from_words
from common.wire import EXAMPLES, FloatArray, Instruction, pack_arrays
from server.bulk import BulkGrid, BulkReplies, ask_groups
from server.closing import Closing, Tally
from server.exchange import BulkExchange, MessageExchange, Outcome, close, nobody, told
from server.roster import Roster
from server.secure_stages import Gathered, Stages, too_few
from server.secure_totals import TotalReader
from server.secure_traffic import Traffic
from server.strategy import TrunkStrategy
from server.sums import SumTable


class SecureExchange(MessageExchange):
    """By messages, in four stages; a plain evaluation where sums are not added securely."""

    def __init__(self, grid: Grid, strategy: TrunkStrategy, roster: Roster, timeout_s: float):
        super().__init__(grid, strategy, roster, timeout_s)
        self.reader = TotalReader(strategy)

    def train(
        self, trunk: Mapping[str, FloatArray], instruction: Instruction, attempt: int = 0
    ) -> Outcome:
        """Have this round's clients train, and step by the sum of their updates."""
        self.strategy.attempt = attempt
        clients = self.strategy.choose(instruction.round)
        if not clients:
            return nobody(self.strategy.combine_nobody(instruction.round, trunk))
        if why := self.reader.no_room(len(clients), trained=True):
            return self._lost(len(clients), Gathered(loss=why))
        told_to = self.reader.instruct(instruction, clients, self.roster)
        self.strategy.address_train(clients, trunk)
        wanted = Closing.of(self.strategy.experiment.federation, len(clients)).needed
        arrays = pack_arrays(trunk)
        found = self._gather(MessageType.TRAIN, clients, arrays, told_to, wanted, trained=True)
        if found.loss:
            return self._lost(len(clients), found)
        update, sums = found.words
        following = self.reader.step(trunk, told_to, from_words(update), len(found.staying))
        table = self.reader.table(sums, told_to, found, self.strategy, trained=True)
        outcome = Outcome(
            len(clients),
            table,
            following,
            {**found.left_out, **self.strategy.last.left_out},
            found.sent_bytes,
            found.received_bytes,
            added=len(found.staying) if table.is_total or not table.clients else None,
        )
        return told(outcome, self.strategy)

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""
        if not adds_sums(self.strategy.experiment):
            return super().evaluate(trunk, instruction)
        clients = self.roster.names
        if why := self.reader.no_room(len(clients), trained=False):
            return self._lost(len(clients), Gathered(loss=why))
        told_to = self.reader.instruct(instruction, clients, self.roster)
        arrays = pack_arrays(self.strategy.evaluated(trunk))
        found = self._gather(MessageType.EVALUATE, clients, arrays, told_to, trained=False)
        if found.loss:
            return self._lost(len(clients), found)
        table = self.reader.table(found.words[1], told_to, found, self.strategy, trained=False)
        return Outcome(
            len(clients),
            table,
            None,
            found.left_out,
            found.sent_bytes,
            found.received_bytes,
            added=len(found.staying),
        )

    def _gather(
        self,
        kind: str,
        clients: Sequence[str],
        arrays: ArrayRecord,
        instruction: Instruction,
        wanted: int = 0,
        *,
        trained: bool,
    ) -> Gathered:
        def ask(messages: list[Message]) -> list[Message]:
            return list(self.grid.send_and_receive(messages, timeout=self.timeout_s))

        widths = self.reader.widths(instruction, trained=trained)
        return Stages(ask, self.roster, clients, instruction).run(kind, arrays, widths, wanted)

    def _lost(self, asked: int, found: Gathered) -> Outcome:
        return Outcome(
            asked,
            SumTable.of({}),
            None,
            found.left_out,
            found.sent_bytes,
            found.received_bytes,
            found.loss,
            added=0,
        )


class SecureBulkExchange(BulkExchange):
    """In one process, with the integers that messages would have carried."""

    def __init__(self, grid: BulkGrid, strategy: TrunkStrategy, roster: Roster):
        super().__init__(grid, strategy, roster)
        self.reader = TotalReader(strategy)

    def train(
        self, trunk: Mapping[str, FloatArray], instruction: Instruction, attempt: int = 0
    ) -> Outcome:
        """Have this round's clients train, and step by the sum of their updates."""
        self.strategy.attempt = attempt
        clients = self.strategy.choose(instruction.round)
        if not clients:
            return nobody(self.strategy.combine_nobody(instruction.round, trunk))
        told_to = self.reader.instruct(instruction, clients, self.roster)
        groups = self.strategy.address_train(clients, trunk)
        replies = ask_groups(
            lambda names, sent: self.grid.train_all(names, sent, told_to), groups, clients
        )
        replies, missing = self._staying(replies, clients)
        loss = self.reader.too_few(len(clients), len(replies.clients))
        wanted = Closing.of(self.strategy.experiment.federation, len(clients)).needed
        loss = loss or too_few(wanted, len(replies.clients))
        following = None
        if not loss:
            numbers = self.reader.add_up(trunk, told_to, replies)
            following = self.reader.step(trunk, told_to, numbers, len(replies.clients))
        table = SumTable.of({}) if loss else self._table(replies, told_to, trained=True)
        outcome = Outcome(
            len(clients), table, following, missing, loss=loss, added=_added(table, replies, loss)
        )
        is_open = self.strategy.experiment.privacy.sums_regime == "sent"
        beside = _open_bytes(replies.sums) if is_open else 0
        counted = self._count(outcome, told_to, trunk, len(replies.clients), beside, trained=True)
        return told(counted, self.strategy)

    def evaluate(self, trunk: Mapping[str, FloatArray], instruction: Instruction) -> Outcome:
        """Have all clients evaluate."""
        outcome = super().evaluate(trunk, instruction)
        if not adds_sums(self.strategy.experiment):
            return outcome
        clients, answered = self.roster.names, len(outcome.sums.clients)
        loss = self.reader.too_few(len(clients), answered)
        told_to = self.reader.instruct(instruction, clients, self.roster)
        replies = BulkReplies(outcome.sums.clients, np.zeros(answered, np.int64), outcome.sums)
        table = SumTable.of({}) if loss else self._table(replies, told_to, trained=False)
        outcome = replace(outcome, sums=table, loss=loss, added=0 if loss else answered)
        arrays = self.strategy.evaluated(trunk)
        return self._count(outcome, told_to, arrays, answered, 0, trained=False)

    def _count(
        self,
        outcome: Outcome,
        instruction: Instruction,
        arrays: Mapping[str, FloatArray],
        staying: int,
        beside: int,
        *,
        trained: bool,
    ) -> Outcome:
        """Count the bytes that messages would have carried."""
        settings = settings_of(self.strategy.experiment)
        widths = self.reader.widths(instruction, trained=trained)
        counted = Traffic.of(
            asked=outcome.asked,
            staying=staying,
            neighbours=group_size(outcome.asked, settings.neighbours) - 1,
            config=instruction.size_bytes(),
            arrays=sum(array.nbytes for array in arrays.values()),
            masked=4 * widths["update"] + 8 * widths["sums"],
        )
        received = counted.received + beside
        return replace(outcome, sent_bytes=counted.sent, received_bytes=received)

    def _staying(
        self, replies: BulkReplies, clients: Sequence[str]
    ) -> tuple[BulkReplies, dict[str, str]]:
        """Drop those who come too late, or whose numbers are none, as they would have said."""
        tally = Tally(Closing(len(clients), len(clients)))
        kept, missing = close(replies, tally)
        faults = dict(tally.faults)
        if adds_sums(self.strategy.experiment):
            faults |= self.reader.unaddable(kept.sums)
        usable = kept.only([name for name in tally.usable if name not in faults])
        return usable, {**missing, **faults}

    def _table(self, replies: BulkReplies, instruction: Instruction, *, trained: bool) -> SumTable:
        if not adds_sums(self.strategy.experiment):
            return replies.sums
        return self.reader.add_tables(replies.sums, instruction, trained=trained)


def _open_bytes(sums: SumTable) -> int:
    """Count what clients send openly of their sums, and of their rows."""
    if not sums.clients:
        return 0
    return sums.size_bytes() + len(sums.clients) * (len(EXAMPLES) + 8)


def _added(table: SumTable, replies: BulkReplies, loss: str) -> int | None:
    """Count those who are in a sum; None where the table has a row for each."""
    if loss:
        return 0
    return None if table.clients and not table.is_total else len(replies.clients)
