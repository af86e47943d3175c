"""A simulated run's lock: who is at work on it, and that nobody else may be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import CheckpointError
from common.locking import take


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold a run folder's lock while the block runs; do without where there are no locks.

    Raises:
        CheckpointError: another process holds it.
    """
    handle = -1
    try:
        found = take(folder / "lock")
        if found is None:
            raise CheckpointError(
                f"run folder {folder} is in use: another process trains it; wait until it has "
                "ended, or train in another folder"
            )
        handle = found
    except (ImportError, OSError):
        pass  # Windows, some network disks: no locks; a missing folder is told by who reads it
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)
