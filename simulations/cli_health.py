"""`fedmtl health`: does the server of a run, or a node, still work?"""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli_options import Json
from simulations.terminal import print_json, told_in_lines

UNHEALTHY = 1  # exit code


def health(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A deployed run's folder, or a node's state folder."),
    ],
    max_age: Annotated[
        float | None,
        typer.Option(
            "--max-age",
            min=0.0,
            metavar="SECONDS",
            help="How old its status may be (default: what the status itself allows).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Does the server of a deployed run, or a node, still work?

    PATH is a server's run folder or a node's state folder on this machine. Exit code: 0 if it works
    or is done, 1 if it failed, is gone, or has said nothing for too long, 2 for bad input.
    """
    with told_in_lines():
        from common.status import judge

        found = judge(path, max_age)
        if as_json:
            print_json(found.to_json())
        else:
            typer.echo(found.line())
    if not found.is_healthy:
        raise typer.Exit(UNHEALTHY)
