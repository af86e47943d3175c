"""Engines that answer for many clients at once.

An engine that trains a round's clients together has no use for a message to, and a reply from, each
of them. The round loop asks such an engine for the whole round; what is said in both directions is
what messages would have said.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from common.wire import FloatArray, Instruction
from server.sums import SumTable


@dataclass(frozen=True)
class BulkReplies:
    """The replies of K clients.

    Attributes:
        clients: their names.
        examples: int64 [K], training rows.
        sums: what their metric records would hold.
        rows: float32 [K, Q], each client's shared parameters, flat, in the order of the trunk that
            was sent; None in an evaluation.
    """

    clients: Sequence[str]
    examples: NDArray[np.int64]
    sums: SumTable
    rows: FloatArray | None = None


class BulkGrid(Grid):
    """A grid that can also run a whole round."""

    @abstractmethod
    def train_all(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Train these clients on the trunk; they answer together."""

    @abstractmethod
    def evaluate_all(
        self, clients: Sequence[str], trunk: Mapping[str, FloatArray], instruction: Instruction
    ) -> BulkReplies:
        """Evaluate the trunk at these clients."""
