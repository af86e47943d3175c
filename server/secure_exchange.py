"""A round in which the server learns sums over clients alone: by messages, or in one process.

`SecureExchange` runs the four stages of `server.secure_stages`. `SecureBulkExchange` belongs to an
engine that has all clients in its own process: it adds up the very integers that clients would
mask, without masks, which cancel exactly; there is nobody there to hide them from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.experiment import Experiment
from common.secure_aggregation.contribution import (
    MOST_EXAMPLES,
    Contributions,
    adds_sums,
    grid_of,
    settings_of,
)
from common.secure_aggregation.graph import count_least, group_size
from common.secure_aggregation.grids import from_words, join_sums, split_sums
from common.secure_aggregation.keys import Words
from common.secure_aggregation.layout import SumsLayout, UpdateLayout
from common.sums_form import SumsForm
from common.wire import EXAMPLES, FloatArray, Instruction, pack_arrays
from server.bulk import BulkGrid, BulkReplies, ask_groups
from server.closing import Closing, Tally
from server.exchange import BulkExchange, MessageExchange, Outcome, close, nobody, told
from server.roster import Roster
from server.secure_stages import Gathered, Stages
from server.secure_traffic import Traffic
from server.strategy import TrunkStrategy
from server.sums import EVERYBODY, SumTable


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
        told_to = self.reader.instruct(instruction, clients, self.roster)
        self.strategy.address_train(clients, trunk)
        found = self._gather(MessageType.TRAIN, clients, pack_arrays(trunk), told_to, trained=True)
        closing = Closing.of(self.strategy.experiment.federation, len(clients))
        loss = found.loss or too_few(closing, len(found.staying))
        if loss:
            return self._lost(len(clients), found, loss)
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
        told_to = self.reader.instruct(instruction, clients, self.roster)
        arrays = pack_arrays(self.strategy.evaluated(trunk))
        found = self._gather(MessageType.EVALUATE, clients, arrays, told_to, trained=False)
        if found.loss:
            return self._lost(len(clients), found, found.loss)
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
        *,
        trained: bool,
    ) -> Gathered:
        def ask(messages: list[Message]) -> list[Message]:
            return list(self.grid.send_and_receive(messages, timeout=self.timeout_s))

        widths = self.reader.widths(instruction, trained=trained)
        return Stages(ask, self.roster, clients, instruction).run(kind, arrays, widths)

    def _lost(self, asked: int, found: Gathered, loss: str) -> Outcome:
        return Outcome(
            asked,
            SumTable.of({}),
            None,
            found.left_out,
            found.sent_bytes,
            found.received_bytes,
            loss,
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
        closing = Closing.of(self.strategy.experiment.federation, len(clients))
        loss = loss or too_few(closing, len(replies.clients))
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
        usable = kept.only(tally.usable)
        return usable, {**missing, **tally.faults}

    def _table(self, replies: BulkReplies, instruction: Instruction, *, trained: bool) -> SumTable:
        if not adds_sums(self.strategy.experiment):
            return replies.sums
        return self.reader.add_tables(replies.sums, instruction, trained=trained)


@dataclass
class TotalReader:
    """Says what vectors hold, and reads their sums.

    Attributes:
        strategy: steps by them.
    """

    strategy: TrunkStrategy

    def __post_init__(self) -> None:
        form = self.strategy.form
        self.sizes = {name: c.stop - c.start for name, c in form.columns.items()}
        self.layout = UpdateLayout(self.experiment, self.sizes)

    @property
    def experiment(self) -> Experiment:
        """The resolved experiment."""
        return self.strategy.experiment

    def instruct(
        self, instruction: Instruction, clients: Sequence[str], roster: Roster
    ) -> Instruction:
        """Add what a round's clients need: how many they are, and what weighs 1."""
        extra: dict[str, float] = {}
        if self.layout.weighs:
            most = settings_of(self.experiment).most_examples
            known = [roster.descriptions[name].examples.get("train", 0) for name in clients]
            extra[MOST_EXAMPLES] = float(min(most, max(known) or most))
        privacy = {**instruction.privacy, **extra}
        return replace(instruction, clients=len(clients), privacy=privacy)

    def widths(self, instruction: Instruction, *, trained: bool) -> dict[str, int]:
        """Count the words of a client's vectors."""
        update = self.layout.full_width if trained else 0
        if not adds_sums(self.experiment):
            return {"update": update, "sums": 0}
        return {"update": update, "sums": 2 * self._sums(instruction, trained).width}

    def too_few(self, asked: int, there: int) -> str:
        """Say why so few cannot be added up; empty where they can."""
        needed = count_least(asked, settings_of(self.experiment).threshold)
        if there >= needed:
            return ""
        return f"secure aggregation: masked vectors of {there} clients, {needed} are needed"

    def step(
        self,
        trunk: Mapping[str, FloatArray],
        instruction: Instruction,
        numbers: NDArray[np.int64],
        clients: int,
    ) -> dict[str, FloatArray] | None:
        """Make the next trunk of the sum of so many clients' integers."""
        grid = grid_of(self.experiment, instruction)
        total = self.layout.unpack(numbers, grid, clients)
        return self.strategy.combine_sum(instruction.round, trunk, total, clients)

    def add_up(
        self, trunk: Mapping[str, FloatArray], instruction: Instruction, replies: BulkReplies
    ) -> NDArray[np.int64]:
        """Put K trunks into integers, each as its client would, and add them up."""
        if replies.rows is None or replies.holds is None:
            raise ValueError("replies to a training round hold trunks")
        made = Contributions(self.experiment, self.sizes, self.experiment.seed)
        before = self.strategy.form.flatten(trunk)
        total = np.zeros(self.layout.full_width, np.int64)
        tasks = tuple(self.experiment.tasks)
        for row, name in enumerate(replies.clients):
            held = [task for task, has in zip(tasks, replies.holds[row], strict=True) if has]
            update, examples = replies.rows[row] - before, int(replies.examples[row])
            total += made.make(name, update, examples, held, instruction)
        return total

    def table(
        self,
        words: Words,
        instruction: Instruction,
        found: Gathered,
        strategy: TrunkStrategy,
        *,
        trained: bool,
    ) -> SumTable:
        """Read what clients reported: their sum, or each client's where the experiment sends it."""
        if adds_sums(self.experiment):
            return self._total(join_sums(np.asarray(words, np.uint64)), instruction, trained)
        if self.experiment.privacy.sums_regime != "sent":
            return SumTable.of({})
        last = strategy.last
        strategy.aggregate_evaluate(instruction.round, found.replies)
        table, last.left_out = SumTable.of(strategy.last.sums), dict(strategy.last.left_out)
        strategy.last = last
        return table

    def add_tables(self, sums: SumTable, instruction: Instruction, *, trained: bool) -> SumTable:
        """Add the clients' sums up, in the words that they would have masked."""
        layout = self._sums(instruction, trained)
        total = np.zeros(2 * layout.width, np.uint64)
        values = np.zeros((len(sums.clients), layout.width))
        for split, task, name, place in layout.fields:
            numbers = sums.numbers.get(split, {}).get(task, {}).get(name)
            if numbers is not None:
                values[:, place] = numbers
        for row in values:
            total += split_sums(row)
        return self._total(join_sums(total), instruction, trained)

    def _total(
        self, flat: NDArray[np.float64], instruction: Instruction, trained: bool
    ) -> SumTable:
        reported = self._sums(instruction, trained).unpack(flat)
        form = SumsForm(self.experiment)
        for split, tasks in reported.items():
            for task, numbers in list(tasks.items()):
                if fault := form.fault(task, numbers):
                    self.strategy.last.notes.append(f"{split} sums of task {task}: {fault}")
                    del tasks[task]
        return SumTable.of({EVERYBODY: reported})

    def _sums(self, instruction: Instruction, trained: bool) -> SumsLayout:
        evaluated = instruction.evaluate or not trained
        return SumsLayout(self.experiment, trained=trained, evaluated=evaluated)


def too_few(closing: Closing, there: int) -> str:
    """Say why a round with so few replies is lost; empty where it is not."""
    if there >= closing.needed:
        return ""
    return f"usable replies: {there}, needed: {closing.needed}"


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
