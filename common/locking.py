"""A lock that its holder cannot leave behind: the kernel releases it when the process ends."""

import fcntl
import os
import time
from pathlib import Path

WAIT_S, POLL_S = 1.0, 0.1  # `is_held` takes the lock for a moment: try a few times


def take(path: Path) -> int | None:
    """Take a lock file; close the descriptor, or end the process, to release it.

    Returns:
        Its descriptor; None where another process holds it.

    Raises:
        OSError: the file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    end = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(handle)
                return None
            time.sleep(POLL_S)


def is_held(path: Path) -> bool:
    """Tell whether a process on this machine holds the lock; False where there is no such file.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
