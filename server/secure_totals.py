"""What the vectors of a round hold, and what their sums say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError
from common.experiment import Experiment
from common.secure_aggregation.contribution import (
    MOST_EXAMPLES,
    Contributions,
    adds_sums,
    grid_of,
    require_room,
    settings_of,
)
from common.secure_aggregation.graph import count_least
from common.secure_aggregation.grids import (
    join_sums,
    require_addable,
    require_room_for_sums,
    split_sums,
)
from common.secure_aggregation.keys import Words
from common.secure_aggregation.layout import SumsLayout, UpdateLayout
from common.sums_form import SumsForm
from common.wire import FloatArray, Instruction
from server.bulk import BulkReplies
from server.roster import Roster
from server.secure_stages import Gathered
from server.strategy import TrunkStrategy
from server.sums import EVERYBODY, SumTable


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

    def no_room(self, clients: int, *, trained: bool) -> str:
        """Say why so many, who may have joined since the start, cannot be added up."""
        try:
            if trained:
                require_room(self.experiment, clients, self.strategy.form.width)
            if adds_sums(self.experiment):
                require_room_for_sums(clients)
        except ConfigError as error:
            return str(error)
        return ""

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

    def unaddable(self, sums: SumTable) -> dict[str, str]:
        """Name clients whose sums have no room, which they would have refused to mask."""
        found = {}
        for row, name in enumerate(sums.clients):
            own = [
                values[row]
                for tasks in sums.numbers.values()
                for numbers in tasks.values()
                for values in numbers.values()
            ]
            try:
                require_addable(np.concatenate(own) if own else np.empty(0), len(sums.clients))
            except ValueError as error:
                found[name] = str(error)
        return found

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
