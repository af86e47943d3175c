"""A client's rows, batch by batch, where the model is.

Rows that are resident lie on the model's device, and a batch is an index away. Others stay in host
memory or in a mapped file: a background thread gathers the next batch while one is computed with,
and for a GPU puts it into pinned memory, from which it is copied without anybody waiting.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from client.prefetching import prefetched
from common.dataset import ClientData, Rows

SHARE = 0.5  # of a GPU's free memory, that a client's rows may fill to be resident there


def fits_device(data: ClientData, device: torch.device) -> bool:
    """Whether a client's rows are to be resident on the device: on a GPU, while there is room."""
    if not data.resident or device.type != "cuda":
        return data.resident
    free, _ = torch.cuda.mem_get_info(device)
    return count_bytes(data) <= SHARE * free


def count_bytes(data: ClientData) -> int:
    """Count the bytes of all rows."""
    return sum(
        values.nbytes
        for rows in data.splits.values()
        for part in (rows.inputs, rows.targets, rows.labelled)
        for values in part.values()
    )


class BatchSource:
    """Yields batches of some rows.

    Args:
        rows: of one split.
        device: where batches are to be.
        resident: whether the rows are to be there as a whole.
    """

    def __init__(self, rows: Rows, device: torch.device, *, resident: bool) -> None:
        self.rows = rows.to(device) if resident else rows
        self.device, self.resident = device, resident

    @contextmanager
    def batches(self, order: Tensor, size: int) -> Iterator[Iterator[Rows]]:
        """Take rows in an order, int64 [M], `size` at a time; leaving the context ends the work."""
        if self.resident:
            yield (self.rows.select(index) for index in torch.split(order.to(self.device), size))
            return
        with prefetched(self._gather(index) for index in torch.split(order, size)) as batches:
            yield batches

    def in_order(self, size: int) -> Iterator[Rows]:
        """Take all rows in the order they are in, `size` at a time."""
        for start in range(0, len(self.rows), size):
            yield self.rows.select(slice(start, start + size)).to(self.device)

    def take(self, index: Tensor) -> Rows:
        """Take rows by index, int64 [M]."""
        return self.rows.select(index.to(self.device)) if self.resident else self._gather(index)

    def _gather(self, index: Tensor) -> Rows:
        return send_rows(self.rows.select(index), self.device)


def send_rows(rows: Rows, device: torch.device) -> Rows:
    """Copy gathered rows to a device; to a GPU, through pinned memory."""
    parts = (rows.inputs, rows.targets, rows.labelled)
    return Rows(*({name: send(values, device) for name, values in part.items()} for part in parts))


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy one gathered tensor to a device; see `send_rows`."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
