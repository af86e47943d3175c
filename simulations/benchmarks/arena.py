"""The arena: contenders as live processes that take turns, so that ratios survive a busy machine.

Every contender is started alone, and its start and first round are timed. Then come cycles; in each
every contender has one turn, in a new random order. Turns of one cycle lie within seconds of each
other and see much the same machine, so a contender is compared with the plain loop's turn of the
same cycle, and the median over cycles is its figure.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from simulations.benchmarks.agreement import Comparison, compare_trunks, read_trunk
from simulations.benchmarks.contenders import PLAIN
from simulations.benchmarks.live import ContenderError, Live, Turn
from simulations.benchmarks.processes import Memory

Start = Callable[[Path], Live]  # starts a contender that may write into this folder
Tell = Callable[[str], None]

LONGEST_TURN = 500  # rounds
SOAKED_TURNS = 20  # trained at a time; longer would look like a contender that hangs
TRUNK = "trunk.npz"


@dataclass
class Record:
    """What was seen of one contender.

    Attributes:
        skipped: why it did not do the work, or stopped doing it; then the rest may be missing.
        import_s: time of a bare ``import torch`` just before its start.
        first_s: time from the start of its process to the end of its first round.
        checked_round: how many rounds it had trained when its trunk was compared.
        comparison: its trunk beside the plain loop's.
        turn_rounds: rounds of one turn.
        turns: cycle -> its turn.
        memory: after the checked round, and at the end.
        rounds: how many it has trained.
    """

    skipped: str = ""
    import_s: float | None = None
    first_s: float | None = None
    checked_round: int = 0
    comparison: Comparison | None = None
    turn_rounds: int = 1
    turns: dict[int, Turn] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    rounds: int = 0


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        cycles: turns of each contender.
        checked_round: every contender shows its trunk after so many rounds, at least two.
        turn_s: about how long a turn is; it has at least one round.
        soak_rounds: rounds that each has trained before its memory is read for the last time.
        time_import: measures a bare ``import torch`` in seconds.
    """

    cycles: int = 30
    checked_round: int = 5
    turn_s: float = 0.4
    soak_rounds: int = 0
    time_import: Callable[[], float] | None = None


class Arena:
    """Runs contenders against each other.

    Args:
        settings: how long to measure.
        scratch: a folder for what contenders write; it exists.
        tell: takes a line on what is being done.
    """

    def __init__(self, settings: Settings, scratch: Path, tell: Tell = lambda line: None) -> None:
        self.settings, self.scratch, self.tell = settings, scratch, tell
        self.records: dict[str, Record] = {}
        self._live: dict[str, Live] = {}

    def run(self, starts: Mapping[str, Start]) -> dict[str, Record]:
        """Start all, let them take turns, end all.

        Args:
            starts: contender name -> how to start it; the plain loop comes first.

        Returns:
            Contender name -> what was seen of it.

        Raises:
            ContenderError: the plain loop cannot do the work; there is nothing to compare with.
        """
        try:
            for name, start in starts.items():
                self.records[name] = Record()
                with self._excusing(name):
                    self._start(name, start)
            order = random.Random(0)
            for cycle in range(self.settings.cycles):
                self.tell(f"cycle {cycle + 1} of {self.settings.cycles}")
                for name in order.sample(list(self._live), len(self._live)):
                    with self._excusing(name):
                        record = self.records[name]
                        record.turns[cycle] = self._take_turn(name, record.turn_rounds)
            for name in list(self._live):
                with self._excusing(name):
                    self._soak(name)
        finally:
            for live in self._live.values():
                live.stop()
        return self.records

    @contextmanager
    def _excusing(self, name: str) -> Iterator[None]:
        """Go on without a contender that fails, unless it is the plain loop."""
        try:
            yield
        except ContenderError as error:
            if name == PLAIN:
                raise
            self.records[name].skipped = str(error)
            self.tell(f"{name} is out: {error}")
            if name in self._live:
                self._live.pop(name).stop()

    def _start(self, name: str, start: Start) -> None:
        """Start a contender, time its first round, and look at its trunk some rounds later."""
        self.tell(f"starting {name}")
        record, folder = self.records[name], self.scratch / name
        folder.mkdir()
        if self.settings.time_import is not None:
            record.import_s = self.settings.time_import()
        self._live[name] = live = start(folder)
        record.first_s = live.first_round()
        record.rounds = 1
        self._take_turn(name, self.settings.checked_round - 1)
        record.checked_round = record.rounds
        live.save_trunk(folder / TRUNK)
        record.memory.append(live.memory())
        plain = read_trunk(self.scratch / PLAIN / TRUNK)
        record.comparison = compare_trunks(read_trunk(folder / TRUNK), plain)
        once = self._take_turn(name, 1).wall_s
        record.turn_rounds = min(max(1, round(self.settings.turn_s / once)), LONGEST_TURN)

    def _take_turn(self, name: str, rounds: int) -> Turn:
        turn = self._live[name].turn(rounds)
        self.records[name].rounds += rounds
        return turn

    def _soak(self, name: str) -> None:
        """Read the memory at the end, after as many rounds as were asked for."""
        record = self.records[name]
        self.tell(f"{name}: {self.settings.soak_rounds} rounds for its memory")
        while (left := self.settings.soak_rounds - record.rounds) > 0:
            self._take_turn(name, min(left, SOAKED_TURNS * record.turn_rounds))
        record.memory.append(self._live[name].memory())
