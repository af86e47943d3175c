"""`fedmtl ensemble`: predictions averaged over runs, clients or snapshots."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli_options import Json
from simulations.terminal import print_json, told_in_lines


def ensemble(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders of finished simulations.")
    ],
    by: Annotated[
        str,
        typer.Option(metavar="NAME", help="runs: over RUNs; clients: over all clients of one RUN."),
    ] = "runs",
    weights: Annotated[
        str,
        typer.Option(metavar="NAME", help="equal; validation: by the inverse validation loss."),
    ] = "equal",
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Raw data of all RUNs, if that has moved.")
    ] = None,
    as_json: Json = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="New folder for ensemble.json.")
    ] = None,
) -> None:
    """Average the predictions of several models, and tell the gain per task.

    Every run predicts a client's rows with its trunk and that client's heads.
    RUNs need the same data and tasks; give them one data.seed and other seeds.
    Only rows that are test rows in all RUNs are tested on: with another split,
    one run's test rows are training rows of another.

    --by clients lets the heads of all clients of one RUN vote on every row.

    --by snapshots averages over the rounds of one RUN that it kept, as with
    --set federation.snapshot-every=10, and its end; beside it stands one model,
    the mean of their parameters.
    """
    with told_in_lines():
        from rich.console import Console

        from simulations.compare import require_new_folder, write_figures
        from simulations.ensembles.ensemble import FIGURES, make_ensemble
        from simulations.ensembles.table import print_ensemble

        if out is not None:
            require_new_folder(out)
        figures = make_ensemble(runs, by, weights, data)
        if out is not None:
            write_figures(out / FIGURES, figures)
        if as_json:
            print_json(figures)
            return
        print_ensemble(figures, Console())
        if out is not None:
            typer.echo(f"figures: {out / FIGURES}")
