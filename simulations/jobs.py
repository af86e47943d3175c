"""Independent jobs, in turn or in processes of their own; Ctrl-C ends them all without a word."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
    others = set(active_children())
    context = get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_the_parent) as pool:
        try:
            with _interrupts_for_this_process():
                futures = {pool.submit(run, job): job for job in jobs}
            for future in as_completed(futures):
                on_result(futures[future], future.result())
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
