"""What every schedule of the learning rate is.

A schedule is a function of a place among others, and of nothing else: of a round among the run's
rounds, or of a step among the steps that a client takes in a stretch of local training. So a
resumed run, a newcomer and all clients of a round agree on it without a word.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

from common.settings import Settings


class Schedule:
    """Base of the schedules: each a class in `common.schedules.shapes` and a line in `SCHEDULES`.

    Attributes:
        ENDS: whether a factor depends on how many there are in all.
    """

    ENDS: ClassVar[bool] = False

    class Options(Settings):
        """What ``schedule-options`` or ``step-schedule-options`` may hold; nothing here."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @classmethod
    def find_problems(cls, options: Any, experiment: Any) -> Iterator[str]:
        """Say what in an experiment it cannot work with: nothing."""
        yield from ()

    def factor(self, place: int, total: int) -> float:
        """Tell by what the learning rate is multiplied, above 0 and at most 1.

        Args:
            place: from 0 on. One past the last counts as the last.
            total: how many there are, at least 1.
        """
        raise NotImplementedError
