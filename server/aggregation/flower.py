"""Flower's own strategies as rules: flat rows go in as messages, one flat array comes out."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.experiment import Experiment
from common.lazy_array import LazyArray
from common.quieting import without_warnings
from common.wire import ARRAYS, EXAMPLES, METRICS, FloatArray
from server.aggregation.rule import Rule

FLAT = "flat"  # the one array of a message
LOSS = "train_loss"  # Flower's own key


@dataclass(frozen=True)
class Answer:
    """As much of a reply as Flower's strategies read; a `Message` would need a running task."""

    content: RecordDict

    def has_error(self) -> bool:
        """Only usable replies come as far as this."""
        return False


class FlatRecord(ArrayRecord):
    """One flat array, given out as a copy that Flower's strategies may write into.

    Flower's own serialises it to count its bytes, and collects garbage after each record: seconds
    per round in a process that holds a federation.
    """

    @classmethod
    def of(cls, row: FloatArray) -> "FlatRecord":
        """Hold a row, which is not copied."""
        record = cls()
        record[FLAT] = LazyArray(row)
        return record

    def to_numpy_ndarrays(self, *, keep_input: bool = True) -> list[NDArray[Any]]:
        """Copy the array out."""
        return [self[FLAT].numpy().copy()]


class FlowerRule(Rule):
    """Lets a strategy of `flwr.serverapp.strategy` combine one flat array per client.

    One array is enough: the strategies here work number by number, or by distances over all
    arrays. A class below says which strategy, what it is told, and what it remembers.

    Attributes:
        strategy: name of the class in `flwr.serverapp.strategy`.
        remembers: its attributes that live from round to round, a list or a dictionary of arrays
            each, or None.
    """

    strategy: ClassVar[str]
    remembers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Any, experiment: Experiment) -> None:
        super().__init__(options, experiment)
        found = getattr(importlib.import_module("flwr.serverapp.strategy"), self.strategy)
        with without_warnings("flwr"):  # of drawing clients, which it does not do here
            # It draws no clients: that is done by stable names (`TrunkStrategy.choose`).
            self.inner = found(fraction_train=0.0, weighted_by_key=EXAMPLES, **self.arguments())

    def arguments(self) -> dict[str, Any]:
        """Get the arguments of the strategy's constructor: the options, by the same names."""
        return dict(self.options.model_dump())

    def aggregate(
        self,
        number: int,
        before: FloatArray,
        rows: FloatArray,
        weights: NDArray[np.float64] | None = None,
        losses: NDArray[np.float64] | None = None,
    ) -> FloatArray:
        """Let Flower's strategy combine rows.

        Args:
            number: the round.
            before: [Q], what it is to take for the current arrays.
            rows: [K, Q].
            weights: [K], what it weighs by; all alike where left out.
            losses: [K], training losses.

        Returns:
            [Q], as wide in bits as the rows.
        """
        shares = [1.0] * len(rows) if weights is None else weights.tolist()
        told = [MetricRecord({EXAMPLES: share}) for share in shares]
        for said, loss in zip(told, [] if losses is None else losses.tolist(), strict=False):
            said[LOSS] = loss
        answers = [
            Answer(RecordDict({ARRAYS: FlatRecord.of(row), METRICS: said}))
            for row, said in zip(rows, told, strict=True)
        ]
        with without_warnings("flwr"):  # of drawing clients, which it does not do here
            self.inner.current_arrays = None  # FedAvgM would keep those of its own last step
            self.inner.configure_train(number, FlatRecord.of(before), ConfigRecord(), None)
            arrays, _ = self.inner.aggregate_train(number, answers)
        combined: FloatArray = np.array(arrays[FLAT].numpy(), rows.dtype)
        return combined

    def state(self) -> dict[str, NDArray[Any]]:
        """Get Flower's memory, [Q] each; nothing before the first round."""
        found = {name: getattr(self.inner, name) for name in self.remembers}
        return {
            name: kept[FLAT] if isinstance(kept, dict) else kept[0]
            for name, kept in found.items()
            if kept
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Give Flower's strategy its memory back; an empty state makes it forget."""
        for name in self.remembers:
            kept = state.get(name)
            as_list = name == "momentum_vector"
            setattr(self.inner, name, None if kept is None else [kept] if as_list else {FLAT: kept})


def too_few_problem(strategy: str, fewest: int, experiment: Experiment) -> Iterator[str]:
    """Refuse a number of clients per round with which a strategy could never work."""
    asked = experiment.federation.clients_per_round
    if asked != "all" and asked < fewest:
        yield (
            f"federation.clients-per-round must be at least {fewest} under federation.strategy "
            f"'{strategy}' with these options, got {asked}; ask more clients, or change "
            "strategy-options"
        )
