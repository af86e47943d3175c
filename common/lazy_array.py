"""A Flower `Array` that stays memory until somebody wants bytes.

Flower's own serialises in its constructor and parses in every `numpy()`; between server and client
of one process neither is needed. The bytes are made when a runtime asks for `data`, so the same
record travels over any of Flower's engines, where it arrives as Flower's own class.
"""

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

SERIALISATION = "numpy.ndarray"  # Flower's name for the NPY format


class LazyArray(Array):
    """Holds a read-only view of a NumPy array; the caller must not change it afterwards."""

    def __init__(self, values: NDArray[Any]) -> None:
        # Flower's constructor is passed over on purpose: it would serialise.
        # Past Flower's __setattr__, which would look for serialised bytes to invalidate.
        attributes = self.__dict__
        attributes["memory"] = attributes["values"] = values
        if values.flags.writeable:
            held = attributes["values"] = values.view()
            held.flags.writeable = False
        attributes["dtype"] = _dtype_name(values.dtype)
        attributes["shape"] = values.shape
        attributes["stype"] = SERIALISATION

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The array in NPY format, made anew at each call."""
        buffer = BytesIO()
        np.save(buffer, self.numpy(), allow_pickle=False)
        return buffer.getvalue()

    def numpy(self) -> NDArray[Any]:
        """The array itself, read-only."""
        values: NDArray[Any] = self.__dict__["values"]
        return values

    def overwrite(self, values: NDArray[Any]) -> bool:
        """Take new values into the same memory; False where that is read-only or does not fit.

        Only for whoever made this array and still owns its memory.
        """
        memory: NDArray[Any] = self.__dict__["memory"]
        fits = memory.shape == values.shape and memory.dtype == values.dtype
        if not memory.flags.writeable or not fits:
            return False
        memory[...] = values
        return True

    def __reduce__(self) -> tuple[Any, ...]:
        return Array, (self.dtype, self.shape, self.stype, self.data)


@cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy spells it anew at each call


# Flower writes a class's name into what it sends and looks it up on arrival.
LazyArray.__qualname__ = Array.__qualname__
