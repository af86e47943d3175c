"""Arrays of many messages in memory that several processes share.

A shelf has one slot per message. What is put into a slot by one process is read in place by another
that knows its layout; who writes when is settled by the messages between them.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, Mapping[str, NDArray[np.generic]]]  # record -> name -> values
Layout = tuple[tuple[str, str, str, tuple[int, ...]], ...]  # record, name, dtype, shape
ALIGNMENT = 64  # bytes


def layout_of(arrays: Arrays) -> Layout:
    """Describe arrays in the order in which they are put."""
    return tuple(
        (record, name, values.dtype.str, values.shape)
        for record, named in arrays.items()
        for name, values in named.items()
    )


def size_of(layout: Layout) -> int:
    """Count the bytes that a slot needs."""
    return max((end for _, end in _places(layout)), default=0)


def _places(layout: Layout) -> Iterator[tuple[int, int]]:
    """Say where each array begins and ends in a slot."""
    start = 0
    for _, _, dtype, shape in layout:
        end = start + np.dtype(dtype).itemsize * math.prod(shape)
        yield start, end
        start = round_up(end)


class Shelf:
    """Slots of equal size.

    Args:
        file: descriptor of a file made by `anonymous_file`; it may be closed afterwards.
        slots: how many.
        size: bytes of each, a multiple of `ALIGNMENT`.
    """

    def __init__(self, file: int, slots: int, size: int) -> None:
        self.slots, self.size = slots, size
        memory = np.frombuffer(mmap.mmap(file, slots * size), np.uint8)
        self._memory = memory.reshape(slots, size)

    def put(self, slot: int, arrays: Arrays, layout: Layout) -> bool:
        """Copy arrays into a slot; False where there is no room, and then nothing is copied."""
        if slot >= self.slots or size_of(layout) > self.size:
            return False
        held = self.get(slot, layout)
        for record, named in arrays.items():
            for name, values in named.items():
                held[record][name][...] = values
        return True

    def get(self, slot: int, layout: Layout) -> dict[str, dict[str, NDArray[np.generic]]]:
        """View the arrays in a slot."""
        arrays: dict[str, dict[str, NDArray[np.generic]]] = {}
        row = self._memory[slot]
        for (record, name, dtype, shape), (start, end) in zip(layout, _places(layout), strict=True):
            arrays.setdefault(record, {})[name] = row[start:end].view(dtype).reshape(shape)
        return arrays


def round_up(size: int) -> int:
    """Round a slot's size up to a multiple of `ALIGNMENT`, at least one."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT


def anonymous_file(size: int) -> int:
    """Make a file without a name, in memory where the system can; returns its descriptor."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("fedmtl")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.truncate(file, size)
    return file
