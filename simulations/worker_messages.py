"""What crosses between the engine's own process and its workers (`simulations.workers`).

A message is taken apart: its arrays go to a slot of the shelf that the processes share, or with the
rest through a pipe where they do not fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from common.wire import pack_arrays, unpack_arrays
from simulations.shared_arrays import Arrays, Layout, Shelf, layout_of

CONTENT = 0  # the slot of what is sent; those of the replies follow

Others = dict[str, ConfigRecord | MetricRecord]


@dataclass(frozen=True)
class Parts:
    """A message's content, taken apart.

    Attributes:
        others: all records but those of arrays.
        layout: of the arrays, where they stand on the shelf.
        arrays: the arrays themselves, where they do not fit there.
    """

    others: Others
    layout: Layout = ()
    arrays: Arrays | None = None


@dataclass(frozen=True)
class Job:
    """One content, for several clients of a worker.

    Attributes:
        parts: the content; its arrays stand in the slot `CONTENT`.
        kind: the messages' type.
        node_ids: who is to answer, in this order.
        slots: where the arrays of each reply go.
        end: when to stop asking clients, by the monotonic clock; None for never.
    """

    parts: Parts
    kind: str
    node_ids: Sequence[int]
    slots: Sequence[int]
    end: float | None


Answer = tuple[int, Parts | Error]  # node, what it answered


def take_apart(content: RecordDict) -> tuple[Arrays, Others]:
    """Separate a message's arrays from its other records."""
    arrays, others = {}, {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays[key] = unpack_arrays(record)
        else:
            others[key] = record
    return arrays, others


def put_together(parts: Parts, shelf: Shelf | None, slot: int) -> RecordDict:
    """Make the message's content again; its arrays stay on the shelf."""
    arrays: Arrays = parts.arrays or {}
    if shelf is not None and parts.arrays is None:
        arrays = shelf.get(slot, parts.layout)
    content = RecordDict()
    for key, named in arrays.items():
        content[key] = pack_arrays(named)  # type: ignore[arg-type]
    for key, record in parts.others.items():
        content[key] = record
    return content


def put_down(content: RecordDict, shelf: Shelf | None, slot: int) -> Parts:
    """Put a content's arrays on the shelf, where they fit."""
    arrays, others = take_apart(content)
    layout = layout_of(arrays)
    if layout and shelf is not None and shelf.put(slot, arrays, layout):
        return Parts(others, layout)
    return Parts(others, arrays=arrays)
