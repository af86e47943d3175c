"""What travels between server and client, as Flower records: the only words they exchange.

server -> client, query: instruction without trunk. client -> server: its `Description`.
server -> client, train or evaluate: trunk arrays and an instruction.
client -> server: trunk arrays (train only), sums and counts per split and task, example counts.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.dataset import SPLITS
from common.lazy_array import LazyArray
from common.metrics import Sums

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # keys of a message's records
MAX_NORM = "max-norm"  # in `Instruction.privacy`: what a round's updates are clipped to
EXAMPLES = "num-examples"  # Flower's own key for a client's weight
MOST_REASON = 1000  # characters of a refusal that are read
REFUSED = 100  # error code of a reply: the client explains why it cannot serve

FloatArray = NDArray[np.float32]
ConfigValue = (
    int
    | float
    | str
    | bytes
    | bool
    | list[int]
    | list[float]
    | list[str]
    | list[bytes]
    | list[bool]
)  # Flower's own, which it does not name in public
SplitSums = dict[str, dict[str, dict[str, Sums]]]  # split -> task -> "loss" or metric -> numbers


@dataclass(frozen=True)
class Instruction:
    """What the server tells a client with every message.

    Attributes:
        experiment: the resolved experiment as JSON.
        agreement: what the clients' descriptions agreed on, as JSON; empty in a query.
        round: number of the round, from 1; 0 in a query.
        weights: task name -> w_t of this round, the same for every client.
        evaluate: whether the reply carries an evaluation of the received trunk.
        memory: task -> name -> what loss scaling and weighting remember, the same for every client.
        run: names the run, the same after a resume; what a client keeps on disk is kept by it.
        clients: how many clients are asked in this round.
        heads_from: name of an earlier run, with whose heads a client starts that has none yet.
        keep: whether what an evaluation fitted, such as heads under 'fedbabu', is kept at home.
        best: after how many rounds the trunk was best so far, where the run will return to it; 0
            where there is none.
        returns: whether the message brings that trunk, to be used with the heads of its time.
        privacy: what the round's mechanisms need beside the experiment, such as "max-norm", to
            which updates are clipped, and "population", of which a Poisson sample is drawn.
    """

    experiment: str
    agreement: str = ""
    round: int = 0
    weights: Mapping[str, float] | None = None
    evaluate: bool = False
    memory: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    run: str = ""
    clients: int = 0
    heads_from: str = ""
    keep: bool = False
    best: int = 0
    returns: bool = False
    privacy: Mapping[str, float] = field(default_factory=dict)

    def to_record(self) -> ConfigRecord:
        """Pack for a message."""
        return ConfigRecord(self._values())

    def size_bytes(self) -> int:
        """Count the payload of `to_record`, as `size_bytes` of a message does."""
        return sum(_value_bytes(value) for value in self._values().values())

    def _values(self) -> dict[str, ConfigValue]:
        weights = self.weights or {}
        return {
            "experiment": self.experiment,
            "agreement": self.agreement,
            "round": self.round,
            "weight-tasks": list(weights),
            "weights": [float(w) for w in weights.values()],
            "evaluate": self.evaluate,
            "memory": json.dumps(self.memory) if self.memory else "",
            "run": self.run,
            "clients": self.clients,
            "heads-from": self.heads_from,
            "keep": self.keep,
            "best": self.best,
            "returns": self.returns,
            "privacy": json.dumps(self.privacy) if self.privacy else "",
        }

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "Instruction":
        """Unpack on the client.

        Raises:
            KeyError: a value is missing.
            TypeError: a value is of another type than `to_record` gives it.
            ValueError: it cannot be read.
        """
        for name, kind in _instruction_types().items():
            if type(record[name]) is not kind:
                got = type(record[name]).__name__
                raise TypeError(f"{name} must be {kind.__name__}, got {got}")
        names = cast(list[str], record["weight-tasks"])
        weights = cast(list[float], record["weights"])
        return cls(
            experiment=cast(str, record["experiment"]),
            agreement=cast(str, record["agreement"]),
            round=cast(int, record["round"]),
            weights=dict(zip(names, weights, strict=True)),
            evaluate=cast(bool, record["evaluate"]),
            memory=json.loads(cast(str, record["memory"]) or "{}"),
            run=cast(str, record["run"]),
            clients=cast(int, record["clients"]),
            heads_from=cast(str, record["heads-from"]),
            keep=cast(bool, record["keep"]),
            best=cast(int, record["best"]),
            returns=cast(bool, record["returns"]),
            privacy=json.loads(cast(str, record["privacy"]) or "{}"),
        )


@cache
def _instruction_types() -> dict[str, type]:
    return {name: type(value) for name, value in Instruction("").to_record().items()}


def pack_arrays(arrays: Mapping[str, FloatArray]) -> ArrayRecord:
    """Pack named arrays; order is kept. They are not copied and must not change afterwards."""
    record = ArrayRecord()  # its constructor would serialise what it is given
    for name, array in arrays.items():
        record[name] = LazyArray(array)
    return record


def overwrite_arrays(record: ArrayRecord, arrays: Mapping[str, FloatArray]) -> bool:
    """Write new values into arrays that this process packed and owns; False where it cannot."""
    if list(record) != list(arrays):
        return False
    return all(
        isinstance(array, LazyArray) and array.overwrite(arrays[name])
        for name, array in record.items()
    )


def unpack_arrays(record: ArrayRecord) -> dict[str, FloatArray]:
    """Unpack named arrays; they may be read-only."""
    return {name: array.numpy() for name, array in record.items()}


def read_array(array: Array) -> NDArray[Any]:
    """Read an array that another machine or another process made, and that may be anything.

    Raises:
        ValueError: it is none: cut short, of another format, or larger than any memory.
    """
    try:
        values = array.numpy()
    except Exception as error:  # whatever a header that is no header makes NumPy do
        raise ValueError(f"no array ({type(error).__name__})") from None
    if not isinstance(values, np.ndarray):  # NumPy opens an archive of arrays as well
        raise ValueError(f"no array ({type(values).__name__})")
    return values


def pack_sums(examples: int, sums: SplitSums) -> MetricRecord:
    """Pack sums and counts: one list of numbers per split, task and metric.

    >>> pack_sums(3, {"train": {"digit": {"loss": [1.5, 3.0]}}})
    {'num-examples': 3, 'train/digit/loss': [1.5, 3.0]}
    """
    packed: dict[str, int | float | list[int] | list[float]] = {EXAMPLES: examples}
    for split, tasks in sums.items():
        for task, numbers in tasks.items():
            for name, values in numbers.items():
                packed[f"{split}/{task}/{name}"] = values
    return MetricRecord(packed)


def unpack_sums(record: MetricRecord) -> SplitSums:
    """Unpack what `pack_sums` packed; keys of another form are not ours and are passed over."""
    sums: SplitSums = {}
    for key, values in record.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[0] in SPLITS and isinstance(values, list):
            split, task, name = parts
            sums.setdefault(split, {}).setdefault(task, {})[name] = [float(v) for v in values]
    return sums


def refusal(message: Message, reason: str) -> Message:
    """Answer that this client cannot serve the message, and why; the run goes on without it."""
    return Message(Error(code=REFUSED, reason=reason), reply_to=message)


def reason_of(reply: Message) -> str:
    """Tell why a reply is an error, in one printable line: the words are another machine's."""
    words = " ".join(str(reply.error.reason or "no reason given").split())
    return "".join(c if c.isprintable() else "?" for c in words)[:MOST_REASON]


def arrays_of(content: RecordDict) -> ArrayRecord | None:
    """Get a message's arrays; Flower's own `array_records` copies every record at each call."""
    record = content.get(ARRAYS)
    return record if isinstance(record, ArrayRecord) else None


def metrics_of(content: RecordDict) -> MetricRecord | None:
    """Get a message's metrics."""
    record = content.get(METRICS)
    return record if isinstance(record, MetricRecord) else None


def config_of(content: RecordDict) -> ConfigRecord:
    """Get a message's instruction or description.

    Raises:
        KeyError: it has none.
    """
    record = content[CONFIG]
    if not isinstance(record, ConfigRecord):
        raise KeyError(CONFIG)
    return record


def size_bytes(content: RecordDict) -> int:
    """Count the payload of a message: arrays, text and numbers, without Flower's framing."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(_array_bytes(array) for array in record.values())
        elif isinstance(record, MetricRecord):
            total += sum(len(key) + _value_bytes(value) for key, value in record.items())
        else:
            total += sum(_value_bytes(value) for value in record.values())
    return total


def _array_bytes(array: Array) -> int:
    """Count what an array says it holds; one that says nonsense counts as the bytes it has."""
    try:
        size = np.dtype(array.dtype).itemsize * math.prod(array.shape)
    except (TypeError, ValueError):
        return len(array.data)
    return size if size >= 0 else len(array.data)


def _value_bytes(value: object) -> int:
    if isinstance(value, list):
        return sum(_value_bytes(v) for v in value)
    return len(value) if isinstance(value, (str, bytes)) else 8
