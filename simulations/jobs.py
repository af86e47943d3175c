"""Independent jobs, in turn or in processes of their own; Ctrl-C ends them all without a word."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    as_completed,
    wait,
)
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    run: Callable[[Job], Result],
    jobs: Sequence[Job],
    processes: int,
    on_result: Callable[[Job, Result], None],
) -> None:
    """Run every job and hand on each result as soon as it is there, in this process.

    An error in a job, or Ctrl-C, ends the others and is raised here.

    Args:
        run: does one job; a function of a module, for other processes import it.
        jobs: what it is given; started in this order.
        processes: that work at a time; with 1 all is done in this process.
        on_result: is given a job and its result.
    """
    processes = min(processes, len(jobs))
    if processes < 2:
        for job in jobs:
            on_result(job, run(job))
        return
    with _pool(processes) as pool:
        with _interrupts_for_this_process():
            futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            on_result(futures[future], future.result())


def run_as_drawn(
    run: Callable[[Job], Result],
    draw: Callable[[], Job | None],
    processes: int,
    on_result: Callable[[Job, Result], None],
) -> None:
    """Run jobs of which each is drawn when there is room for it, so that it may know of results.

    Otherwise as `run_jobs`.

    Args:
        run: does one job; a function of a module, for other processes import it.
        draw: gives the next job, or None where there is none any more.
        processes: that work at a time; with 1 all is done in this process.
        on_result: is given a job and its result.
    """
    if processes < 2:
        while (job := draw()) is not None:
            on_result(job, run(job))
        return
    with _pool(processes) as pool:
        at_work: dict[Future[Result], Job] = {}
        while True:
            while len(at_work) < processes and (job := draw()) is not None:
                with _interrupts_for_this_process():
                    at_work[pool.submit(run, job)] = job
            if not at_work:
                return
            for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                on_result(at_work.pop(future), future.result())


@contextmanager
def _pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes, and end them all where the block does not end well."""
    others = set(active_children())
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_the_parent) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(active_children()) - others:
                process.terminate()
            raise


def _end_with_the_parent() -> None:
    """Watch the process that started this one: were it killed, this would go on for nobody."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_for_this_process() -> Iterator[None]:
    """Let processes that are started meanwhile pass over Ctrl-C, from their first moment on."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a process ignores, its child does
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
