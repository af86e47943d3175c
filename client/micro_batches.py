"""A batch that goes through a model in parts, for want of memory, and steps as the whole."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from common.dataset import Rows


@dataclass(frozen=True)
class MicroBatch:
    """Consecutive rows of a batch.

    Attributes:
        rows: them.
        place: which of the batch they are.
        counts: task name -> labelled rows among them; tasks without any are absent.
    """

    rows: Rows
    place: slice
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Batch:
    """A batch and its micro-batches.

    A task's mean loss over the batch is the sum of its mean losses over the micro-batches, each
    times its share of the task's labelled rows: so is its gradient.

    Attributes:
        micro_batches: in the order of the rows; one where the batch goes through as a whole.
        counts: task name -> labelled rows; tasks without any are absent.
        size: B.
    """

    micro_batches: tuple[MicroBatch, ...]
    counts: Mapping[str, int]
    size: int

    @classmethod
    def of(cls, rows: Rows, micro_batch: int | None) -> "Batch":
        """Cut a batch into micro-batches of at most so many rows."""
        parts = tuple(cut(rows, micro_batch))
        counts: dict[str, int] = {}
        for task in rows.labelled:
            if total := sum(part.counts.get(task, 0) for part in parts):
                counts[task] = total
        return cls(parts, counts, len(rows))

    @property
    def is_whole(self) -> bool:
        """Whether it goes through as one."""
        return len(self.micro_batches) == 1

    def share(self, part: MicroBatch, task: str) -> float:
        """Tell a micro-batch's share of a task's labelled rows."""
        return part.counts[task] / self.counts[task]


def cut(rows: Rows, size: int | None) -> Iterator[MicroBatch]:
    """Cut rows into micro-batches of at most so many; one by default."""
    size = size or max(1, len(rows))
    for start in range(0, len(rows), size):
        place = slice(start, min(start + size, len(rows)))
        part = rows if len(rows) <= size else rows.select(place)
        counts = {task: int(mask.sum()) for task, mask in part.labelled.items()}
        yield MicroBatch(part, place, {task: count for task, count in counts.items() if count})
