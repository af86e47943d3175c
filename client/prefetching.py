"""Work done one item ahead, in a thread of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import Generic, TypeVar

T = TypeVar("T")

AHEAD = 2  # items that wait: one in use, one ready, one in the making
LOOK_S = 0.1  # how often a thread that waits for room looks whether anybody still wants its items


class _Failure:
    """What ended the thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    """Nothing follows."""


class _Worker(Generic[T]):
    """Draws items from an iterator and queues them until it is stopped."""

    def __init__(self, items: Iterator[T]) -> None:
        self.items = items
        self.queue: Queue[T | _Failure | _End] = Queue(AHEAD)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, name="fedmtl-prefetch", daemon=True)

    def _work(self) -> None:
        try:
            for item in self.items:
                if not self._put(item):
                    return
            self._put(_End())
        except BaseException as error:  # it is the consumer's to raise
            self._put(_Failure(error))

    def _put(self, item: T | _Failure | _End) -> bool:
        while not self.stopped.is_set():
            try:
                self.queue.put(item, timeout=LOOK_S)
            except Full:
                continue
            return True
        return False

    def take(self) -> Iterator[T]:
        """Yield what the thread made, in its order; raise what it met."""
        while True:
            item = self.queue.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self.stopped.set()
        while self.thread.is_alive():
            try:
                self.queue.get_nowait()  # makes room for a put that waits
            except Empty:
                self.thread.join(LOOK_S)


@contextmanager
def prefetched(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Have items made in a background thread while earlier ones are used.

    The items, their order, and what their iterator raises are the same as without; leaving the
    context ends the thread, whether all were taken or not.

    >>> with prefetched(iter([1, 2, 3])) as made:
    ...     list(made)
    [1, 2, 3]
    """
    worker = _Worker(items)
    worker.thread.start()
    try:
        yield worker.take()
    finally:
        worker.stop()
