"""Loggers kept quiet for a while."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_warnings(name: str) -> Iterator[None]:
    """Keep what a logger has to say below an error to itself."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
