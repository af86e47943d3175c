"""`fedmtl yardstick`: what a run's tasks gain by being trained together."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from simulations.cli_options import Json
from simulations.terminal import INTERRUPTED, print_json, told_in_lines


def yardstick(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run folder of a run that ended.")
    ],
    local: Annotated[
        bool,
        typer.Option("--local", help="Against single-task models of each client by itself, too."),
    ] = False,
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Its raw data, if that has moved.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Tasks trained at a time, in processes of their own.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Train every task of a run alone, and tell what each gained by the others.

    RUN is a run folder. Each of its tasks is trained in a federation of its own: the same clients,
    rows, seed, algorithm and rounds, and a loss in which no other task has a weight. The gain of a
    task is relative to that, Delta-m the mean over tasks.

    Writes yardstick.json, a run folder for every task in yardstick/, and RUN's report anew. What
    was interrupted goes on with the tasks that are missing.
    """
    with told_in_lines():
        from rich.console import Console

        from simulations.report import write_report
        from simulations.yardstick import measure_yardsticks
        from simulations.yardstick_table import print_yardstick

        logging.getLogger("flwr").setLevel(logging.WARNING)
        about = f"training each task of {run_folder} alone ..."
        try:
            with Console(stderr=True).status(about) as status:
                found = measure_yardsticks(
                    run_folder,
                    data=data,
                    local=local,
                    jobs=jobs,
                    on_progress=lambda done, total: status.update(f"{about} {done} of {total}"),
                )
        except KeyboardInterrupt:
            typer.echo("\nInterrupted; the same command goes on with what is missing.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        if as_json:
            print_json(found)
        else:
            print_yardstick(found, Console())
        page = write_report(run_folder)
        if not as_json:
            typer.echo(f"report: {page}")
