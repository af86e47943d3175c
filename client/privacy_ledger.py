"""The ledger of a node: every reply that left it, what that cost, and what is left of its budgets.

One file for each client, over all of its runs, in the node's state folder::

    <state>/privacy/<client>.jsonl     a line per reply, see `common.privacy.ledger.Entry`

A line is on the disk before its reply leaves, and none is ever changed: a round that is asked again
releases again, and costs again. A crash can tear the last line alone, and then its write never
returned, so that its reply never left: it is dropped, with a warning. A line that is whole counts,
whether or not its reply left. Anything else that cannot be read stops the client: what it paid is
not known, and no round is worth guessing.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.place import Place
from client.state import folder_name, sync_folder
from common.errors import BudgetError, ConfigError, StateError
from common.experiment import Experiment
from common.privacy.ledger import (
    COUNTS,
    SLACK,
    SUMS,
    UPDATE,
    Cost,
    Entry,
    add_costs,
    budgets,
    cost_of,
    epsilon_of_cost,
    population,
    released_by,
)
from common.wire import Instruction

logger = logging.getLogger("fedmtl.client")

FOLDER = "privacy"
MOST_LINE = 2**20  # bytes of a line, more than any has


@dataclass(frozen=True)
class LedgerFile:
    """The ledger of one client.

    Attributes:
        path: its file.
    """

    path: Path

    @classmethod
    def of(cls, state: Path, client: str) -> "LedgerFile":
        """Name a client's ledger in a node's state folder."""
        return cls(state / FOLDER / f"{folder_name(client)}.jsonl")

    def read(self) -> list[Entry]:
        """Read all entries, oldest first.

        Raises:
            StateError: it cannot be read, so that nobody knows what was paid.
        """
        entries, torn = self._read()
        if torn:
            logger.warning(
                "the last line of %s was torn by a crash before its reply could leave: it does "
                "not count",
                self.path,
            )
        return entries

    def _read(self) -> tuple[list[Entry], int]:
        """Read all entries; also how many bytes at the end belong to a torn line."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise StateError(
                f"state: {self.path} cannot be read: {error.strerror or error}; mend that, for "
                "without it nobody knows what this client has paid"
            ) from error
        lines = content.split(b"\n")
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries += [Entry.from_json(line.decode())] if line else []
            except ValueError as error:
                if number == len(lines):
                    return entries, len(line)
                raise StateError(
                    f"state: {self.path}, line {number} is no entry ({error}), so that nobody "
                    "knows what this client has paid; restore it, or move the file away to start "
                    "an account anew, which makes every earlier figure void"
                ) from error
        return entries, 0

    def append(self, entry: Entry) -> None:
        """Add an entry; once this returns, it is on the disk.

        Raises:
            StateError: it cannot be written; the reply must not leave.
        """
        line = entry.to_json().encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            is_new = not self.path.exists()
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
            with open(
                self.path, "a+b", buffering=0, opener=lambda p, _: os.open(p, flags, 0o600)
            ) as file:
                self._mend(file.fileno())
                end = os.fstat(file.fileno()).st_size
                try:
                    _write(file.fileno(), line)
                except OSError:
                    os.ftruncate(file.fileno(), end)  # half a line
                    raise
                os.fsync(file.fileno())
            if is_new:
                sync_folder(self.path.parent)
        except OSError as error:
            raise StateError(
                f"state: {self.path} cannot be written: {error.strerror or error}; make room or "
                "correct its permissions. The reply stays here, because what it would cost could "
                "not be written down"
            ) from error

    def _mend(self, handle: int) -> None:
        """Make the file end with a whole line: drop a torn one, end one that lacks its end."""
        size = os.fstat(handle).st_size
        tail = os.pread(handle, MOST_LINE, max(0, size - MOST_LINE)).rpartition(b"\n")[2]
        if not tail:
            return
        try:
            Entry.from_json(tail.decode())
        except ValueError:
            os.ftruncate(handle, size - len(tail))
        else:
            _write(handle, b"\n")


def _write(handle: int, content: bytes) -> None:
    while content:  # a disk that is nearly full takes a part of it
        content = content[os.write(handle, content) :]


class PrivacyLedger:
    """What one client has paid, and may still pay, for one message.

    Args:
        experiment: as the server sent it.
        instruction: of the message.
        limits: the node's own decisions.
        client: its name.
        rows: its training rows.
        state: the node's state folder; None where nothing is written down, as in a simulation,
            whose server does it.
    """

    def __init__(
        self,
        experiment: Experiment,
        instruction: Instruction,
        limits: Place,
        client: str,
        rows: int,
        state: Path | None,
    ) -> None:
        self.experiment, self.instruction, self.limits = experiment, instruction, limits
        self.client, self.rows = client, rows
        self.budgets = budgets(experiment)
        self.file = None if state is None else LedgerFile.of(state, client)
        self.entries: Sequence[Entry] = () if self.file is None else self.file.read()

    def check(self, reply: str) -> None:
        """Refuse a message whose reply would exceed a budget, before anything is trained.

        Args:
            reply: "train" or "evaluate".

        Raises:
            BudgetError: the experiment's budget, or the node's, would be exceeded.
            ConfigError: no noise keeps the experiment's budget, or the node's has no ledger.
        """
        limits = self.limits
        if self.file is None:
            if limits.largest_epsilon or limits.least_noise_multiplier:
                raise ConfigError(
                    "largest-epsilon and least-noise-multiplier of this node need a ledger, and it "
                    "has no state folder for one; name one: --node-config 'state=\"FOLDER\"'"
                )
            return
        cost = self._cost(reply)
        if limits.largest_epsilon and not self.budgets:
            raise BudgetError(
                f"largest-epsilon of this node is {limits.largest_epsilon:g}, and the experiment "
                "has no budget: neither [privacy.client-level] nor [privacy.example-level]"
            )
        if limits.least_noise_multiplier:
            self._check_noise(cost, limits.least_noise_multiplier)
        of_run = [e.cost for e in self.entries if e.run == self.instruction.run]
        for unit, budget in self.budgets.items():
            if budget.epsilon is not None:
                what = f"privacy.{unit}-level.epsilon of the experiment"
                self._check(unit, [*of_run, cost], budget.epsilon, budget.delta, what)
            if limits.largest_epsilon:
                what = "largest-epsilon of this node, over all runs,"
                paid = [e.cost for e in self._of_node()]
                self._check(unit, [*paid, cost], limits.largest_epsilon, limits.delta, what)

    def _of_node(self) -> list[Entry]:
        """Read the ledgers of all names that this node had.

        Where its config does not name its client, columns and partition of the experiment do: a
        server must not get a fresh account of the same rows by another name.
        """
        others = [] if self.file is None else sorted(self.file.path.parent.glob("*.jsonl"))
        read = [LedgerFile(p).read() for p in others if self.file and p != self.file.path]
        return [*self.entries, *(entry for entries in read for entry in entries)]

    def _check(
        self, unit: str, costs: Sequence[Cost], most: float, delta: float, what: str
    ) -> None:
        def epsilon(paid: Sequence[Cost]) -> float:
            events = add_costs(paid).get(unit, ())
            return epsilon_of_cost(events, delta, self.experiment.privacy.accountant)

        after = epsilon(costs)
        if after > most * (1 + SLACK):
            figures = f"{epsilon(costs[:-1]):.4g} is paid and this reply would make it {after:.4g}"
            if unit == "example" and self.experiment.privacy.counts == "withheld":
                figures = "and this reply would exceed it"  # by how much would tell its rows
            raise BudgetError(
                f"{self.client} does not answer: {what} is {most:g} at delta {delta:g}, {figures}"
            )

    def _check_noise(self, cost: Cost, least: float) -> None:
        """Hold the noise of what a reply costs against the least that the node's owner allows."""
        noises = [event.noise_multiplier for events in cost.values() for event in events]
        if not self.budgets or min(noises, default=least) < least:
            got = f"{min(noises):.4g}" if noises else "no noise"
            raise BudgetError(
                f"least-noise-multiplier of this node is {least:g}, the experiment has {got}"
            )

    def enter(self, reply: str, update: int, sums: int) -> None:
        """Write down what is about to leave; where nothing is kept on disk, nothing.

        Args:
            reply: "train" or "evaluate".
            update: how many numbers its arrays have.
            sums: how many its sums have.

        Raises:
            StateError: it cannot be written; the reply must not leave.
        """
        if self.file is None:
            return
        cost, privacy = self._cost(reply), self.experiment.privacy
        run, number = self.instruction.run, self.instruction.round
        total = add_costs([*(e.cost for e in self.entries if e.run == run), cost])
        numbers = {UPDATE: update, SUMS: sums, COUNTS: int(privacy.counts == "sent")}
        entry = Entry(
            run=run,
            round=number,
            client=self.client,
            reply=reply,
            released=released_by(self.experiment, numbers),
            cost=cost,
            epsilon={
                unit: epsilon_of_cost(total.get(unit, ()), budget.delta, privacy.accountant)
                for unit, budget in self.budgets.items()
            },
            delta={unit: budget.delta for unit, budget in self.budgets.items()},
        )
        self.file.append(entry)
        self.entries = [*self.entries, entry]

    def _cost(self, reply: str) -> Cost:
        """Work out what a reply costs."""
        is_training = reply == "train"
        return cost_of(
            self.experiment,
            clients=population(self.instruction.privacy),
            rows=self.rows,
            trainings=int(is_training),
            evaluations=int(not is_training),
            rounds=self._rounds(is_training),
        )

    def _rounds(self, is_training: bool) -> int:
        """Count the rounds since this client's last reply; under amplification each costs all."""
        before = [e.round for e in self.entries if e.run == self.instruction.run]
        passed = max(0, self.instruction.round - max(before, default=0))
        return max(passed, int(is_training))  # the same round again costs again


def require_entry(state: Path, instruction: Instruction, reply: str) -> None:
    """Check that some client's ledger ends with a reply, before it leaves a node that has limits.

    Args:
        state: the node's state folder.
        instruction: of the message.
        reply: "train" or "evaluate"; other kinds hold nothing that costs privacy.

    Raises:
        BudgetError: none does, as where a bundle's code keeps no ledger.
    """
    if reply not in ("train", "evaluate"):
        return
    wanted = (instruction.run, instruction.round, reply)
    for path in (state / FOLDER).glob("*.jsonl"):
        entries = LedgerFile(path).read()
        if entries and (entries[-1].run, entries[-1].round, entries[-1].reply) == wanted:
            return
    raise BudgetError(
        "the client's code wrote no entry for this reply into the node's ledger, against which its "
        "owner's limits are held; run code that does"
    )
