"""`fedmtl runs` and `fedmtl report`: what was trained, in a table and on a page."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.cli_options import Json
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
    as_json: Json = False,
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
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the page's figures, too, each into files of its own."
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME,...",
            help="Of --figures: csv (default), json (Plotly's), svg, png; pictures need "
            "fedmtl[figures] and a Chrome.",
        ),
    ] = "",
) -> None:
    """Write a run's report, one HTML page that needs no network; of several runs, side by side.

    RUN is a run folder, finished or not. What fedmtl evaluate and fedmtl yardstick found about it
    is on its page. On the page, too, every figure can be saved as SVG, PNG and CSV.
    """
    with told_in_lines():
        chosen = _choose_formats(run_folders, figures, formats)
        if len(run_folders) == 1:
            from simulations.report import collect_figures, write_report

            typer.echo(write_report(run_folders[0], out))
            if figures is not None:
                from simulations.figure_files import write_figures
                from simulations.formats import format_count

                paths = write_figures(collect_figures(run_folders[0]), figures, chosen)
                typer.echo(f"{figures}: {format_count(len(paths), 'file')}")
        else:
            from simulations.runs_page import PAGE, write_runs_page

            typer.echo(write_runs_page(run_folders, out or Path(PAGE)))


def _choose_formats(run_folders: list[Path], figures: Path | None, formats: str) -> tuple[str, ...]:
    """Read --format, before anything is written.

    Raises:
        ConfigError: it cannot be had, or --figures is missing or for one run only.
    """
    if figures is None:
        if formats:
            raise ConfigError(
                f"--format is of --figures, got '{formats}' without it; add --figures FOLDER"
            )
        return ()
    if len(run_folders) > 1:
        raise ConfigError(
            f"--figures is for one run, got {len(run_folders)}; write them run by run"
        )
    from simulations.figure_files import parse_formats

    return parse_formats(formats or "csv")
