"""`fedmtl runs` and `fedmtl report`: what was trained, in a table and on a page."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.terminal import print_json, told_in_lines

DEFAULT_FOLDER = Path("runs")


def runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Where to look, subfolders too; default: runs."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only runs with this setting, as in training.lr=0.1 or 'training.lr<0.1'; "
            "repeated, all must hold.",
        ),
    ] = None,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="name, experiment, state, rounds, seed, seconds, epsilon, when, a task (best "
            "first) or a setting.",
        ),
    ] = "when",
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on stdout, for machines.")
    ] = False,
) -> None:
    """List the runs in a folder: what was trained, how far it got, what came of it.

    FOLDER is what simulate or compare wrote, or a folder of such folders. The figures are those of
    the last trunk on test rows. What cannot be read is named on stderr.
    """
    with told_in_lines():
        from simulations.run_filter import parse_condition, select_runs, sort_runs
        from simulations.run_list import list_runs

        conditions = [parse_condition(text) for text in where or []]
        rows, left_out = list_runs(folders or [DEFAULT_FOLDER])
        chosen = sort_runs(select_runs(rows, conditions), sort, reverse=reverse)
        if as_json:
            told = [{"folder": each.folder, "reason": each.reason} for each in left_out]
            print_json({"runs": [row.to_json() for row in chosen], "left-out": told})
            return
        from simulations.runs_table import print_runs

        print_runs(chosen, len(rows))
        for each in left_out:
            typer.echo(f"left out: {each.folder}: {each.reason}", err=True)


def report(
    run_folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="A run folder; several: side by side.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page to write; default: report.html in the run folder, of several runs "
            "runs.html here.",
        ),
    ] = None,
) -> None:
    """Write a run's report, one HTML page that needs no network; of several runs, side by side.

    RUN is a run folder, finished or not.
    """
    with told_in_lines():
        if len(run_folders) == 1:
            from simulations.report import write_report

            typer.echo(write_report(run_folders[0], out))
        else:
            from simulations.runs_page import PAGE, write_runs_page

            typer.echo(write_runs_page(run_folders, out or Path(PAGE)))
