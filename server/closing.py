"""When a round is over, and when it has lost too many replies."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from common.sections.federation import Federation

logger = logging.getLogger("fedmtl.server")
SILENT = "no answer in time"
CLOSED = "came after the round had closed"
NOBODY = "no client was there"
UNUSABLE = "no reply was usable"
ROUNDING = 9  # digits; a share times a number may miss the whole number that it should be


@dataclass(frozen=True)
class Closing:
    """The rule for a round of so many clients.

    Attributes:
        asked: clients asked.
        wanted: usable replies that close it (Bonawitz et al., "Towards federated learning at
            scale", 2019, section 3.2: ask more than are wanted, close when they are there).
        needed: with fewer usable replies the round is lost.
    """

    asked: int
    wanted: int
    needed: int = 0

    @classmethod
    def of(cls, federation: Federation, asked: int) -> Self:
        """Read the rule from the experiment."""
        wanted = federation.clients_per_round
        is_over = federation.over_selection > 0 and wanted != "all"
        target = int(wanted) if is_over else asked
        share = round(target * federation.least_replies, ROUNDING)
        return cls(asked, target, math.ceil(share))

    @property
    def is_plain(self) -> bool:
        """Whether it waits for everybody and takes what comes: nothing has to be counted."""
        return self.wanted >= self.asked and not self.needed


@dataclass
class Tally:
    """Counts a round's replies as they arrive.

    Attributes:
        closing: the rule.
        usable: clients whose replies count, in the order of their arrival; the values say nothing.
        faults: clients whose replies came before the round had closed and cannot be used -> why.
    """

    closing: Closing
    usable: dict[str, None] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def take(self, client: str, fault: str | None) -> bool:
        """Take in one reply; returns whether the round is closed now."""
        if not self.is_closed and not self.has(client):
            if fault is None:
                self.usable[client] = None
            else:
                self.faults[client] = fault
        return self.is_closed

    def has(self, client: str) -> bool:
        """Whether a client's reply came before the round had closed."""
        return client in self.faults or client in self.usable

    @property
    def is_closed(self) -> bool:
        """Whether as many usable replies are there as are wanted."""
        return len(self.usable) >= self.closing.wanted

    @property
    def loss(self) -> str:
        """Why the round is lost; empty where it is not."""
        usable, needed = len(self.usable), self.closing.needed
        return f"usable replies: {usable}, needed: {needed}" if usable < needed else ""

    def left_out(self, asked: Iterable[str]) -> dict[str, str]:
        """Say of everybody asked whose reply does not count why, by name."""
        missing = CLOSED if self.is_closed else SILENT
        others = sorted({*asked} - {*self.usable})
        return {name: self.faults.get(name, missing) for name in others}


def warn(left_out: dict[str, str]) -> None:
    """Log who was left out and why; those who were one too many are no trouble."""
    for name, reason in left_out.items():
        level = logging.INFO if reason == CLOSED else logging.WARNING
        logger.log(level, "%s left out: %s", name, reason)
