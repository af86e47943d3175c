"""What a background thread makes is what would have been made, in the same order."""

import threading
import time

import pytest

from client.prefetching import AHEAD, prefetched


def threads() -> int:
    return sum(thread.name == "fedmtl-prefetch" for thread in threading.enumerate())


def test_items_come_in_their_order():
    with prefetched(iter(range(100))) as made:
        assert list(made) == list(range(100))
    assert threads() == 0


def test_an_item_is_made_before_it_is_asked_for():
    made_next = threading.Event()

    def items():
        yield "first"
        made_next.set()
        yield "second"

    with prefetched(items()) as made:
        assert next(made) == "first"
        assert made_next.wait(10)


def test_not_more_than_a_few_items_are_ahead():
    count = 0

    def items():
        nonlocal count
        for _ in range(100):
            count += 1
            yield count

    with prefetched(items()) as made:
        next(made)
        time.sleep(0.3)
        assert count <= AHEAD + 2  # taken, waiting, and one that waits for room


def test_what_the_thread_meets_is_raised_behind_the_items_before_it():
    def items():
        yield 1
        raise OSError("the disk is gone")

    with prefetched(items()) as made:
        assert next(made) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(made)
    assert threads() == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_leaving_early_ends_the_thread(error):
    def leave():
        with prefetched(iter(range(10**9))) as made:
            next(made)
            raise error

    with pytest.raises(error):
        leave()
    assert threads() == 0


def test_items_that_nobody_takes_end_with_the_context():
    with prefetched(iter(range(10**9))):
        pass
    assert threads() == 0
