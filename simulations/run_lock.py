"""A simulated run's lock: it tells a run at work from one that ended, and keeps a second one out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import CheckpointError
from common.locking import take


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold a run folder's lock while the block runs; where there are no locks, or no folder, do not.

    Raises:
        CheckpointError: another process holds it.
    """
    handle = -1
    try:
        found = take(folder / "lock")
        if found is None:
            raise CheckpointError(
                f"run folder {folder} is in use: another process trains it; wait until it has "
                "ended, or choose another --out"
            )
        handle = found
    except (ImportError, OSError):  # Windows; some network disks; the folder's reader tells the rest
        pass
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)
