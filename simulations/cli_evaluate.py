"""`fedmtl evaluate`: figures and pictures of what a run's models say."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.terminal import told_in_lines


def evaluate(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run folder of a simulation that ended.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Its raw data, if that has moved.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="test or validation.")] = "test",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: the run folder."),
    ] = None,
) -> None:
    """Look at what a run's models say about held-out rows, task by task and client by client.

    RUN is the run folder of a simulation that ended, by --engine loopback or batched: it holds the
    heads that its clients kept, and each client's rows meet the final trunk with its own heads.

    Confusion, ROC, precision and recall, calibration, residuals, fairness over clients, balance
    over tasks. Writes evaluation.json, evaluation.html, and evaluation/ with a CSV file per figure;
    and, unless --out says where else, RUN's report anew, which then has it all on one page.
    """
    with told_in_lines():
        from simulations.evaluation.evaluate import evaluate as evaluate_run
        from simulations.evaluation.files import write_evaluation
        from simulations.formats import format_count

        figures = evaluate_run(run_folder, split, data)
        paths = write_evaluation(figures, out or run_folder)
        for text in figures["notes"]:
            typer.echo(text, err=True)
        rows, clients = (format_count(figures[what], what[:-1]) for what in ("rows", "clients"))
        typer.echo(f"{rows} of {clients}, split {split}: {', '.join(map(str, paths))}")
        if out is None:
            from simulations.report import write_report

            typer.echo(f"report: {write_report(run_folder)}")
