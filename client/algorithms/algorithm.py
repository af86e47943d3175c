"""What every algorithm of the client's side is."""

from collections.abc import Iterator
from typing import Any

from common.experiment import Experiment, Settings


class LocalAlgorithm:
    """Base of the algorithms, each a class in its own file and a line in `ALGORITHMS`."""

    class Options(Settings):
        """What ``federation.algorithm-options`` may hold; nothing here."""

    @classmethod
    def find_problems(cls, options: Any, experiment: Experiment) -> Iterator[str]:
        """Say what in an experiment it cannot work with, a line each."""
        yield from ()
