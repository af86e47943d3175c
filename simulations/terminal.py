"""What all commands share: errors as lines, exit codes, JSON on stdout."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from common.errors import FedMTLError

BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


@contextmanager
def told_in_lines() -> Iterator[None]:
    """Print an error of the user's input as lines on stderr and exit with 2."""
    try:
        yield
    except FedMTLError as error:
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def print_json(content: Any) -> None:
    """Print JSON on stdout; a figure that does not exist is null."""
    from common.json_gaps import without_gaps

    typer.echo(json.dumps(without_gaps(content), indent=2, ensure_ascii=False))
