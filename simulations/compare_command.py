"""`fedmtl compare`: a comparison with progress on stderr, then its figures and its page."""

from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from common.experiment import Experiment
from simulations.compare import compare
from simulations.compare_variants import compare_variants
from simulations.comparison_page import write_comparison_page
from simulations.comparison_table import print_comparison
from simulations.formats import format_count
from simulations.holdout import Holdout
from simulations.newcomers_table import print_newcomers
from simulations.terminal import INTERRUPTED, print_json
from simulations.tracked_run import UNTRACKED, Track
from simulations.variants import Plan


def run_comparison(
    what: Experiment | Plan,
    seeds: int,
    jobs: int,
    out: Path,
    holdout: Holdout | None = None,
    track: Track = UNTRACKED,
) -> dict[str, Any]:
    """Compare all ways to train an experiment, or variants, with a line of progress on stderr.

    Raises:
        FedMTLError: the settings, the data or the folder cannot be used.
        typer.Exit: interrupted; says what is done.
    """
    experiment = what if isinstance(what, Experiment) else what.experiment
    about = f"comparing on {experiment.name}, {format_count(seeds, 'seed')} ..."
    track.prepare()
    try:
        with Console(stderr=True).status(about) as status:
            if isinstance(what, Experiment):
                return compare(what, range(seeds), out, jobs=jobs, holdout=holdout, track=track)
            return compare_variants(
                what,
                range(seeds),
                out,
                jobs=jobs,
                on_progress=lambda done, total: status.update(f"{about} {done} of {total} runs"),
                holdout=holdout,
                track=track,
            )
    except KeyboardInterrupt:
        done = len(list(out.glob("seed-*/comparison.json")))
        typer.echo(
            f"\nInterrupted: {done} of {seeds} seeds are done, each in "
            f"{out}/seed-N/comparison.json.",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None


def tell_comparison(
    experiment: Experiment, comparison: dict[str, Any], out: Path, *, as_json: bool
) -> None:
    """Print the figures, then write the page, whose failure is told last: they do not need it.

    Raises:
        FedMTLError: the page cannot be written.
    """
    if as_json:
        print_json(comparison)
    else:
        print_comparison(comparison, Console())
        print_newcomers(comparison, Console())
        typer.echo(f"figures: {out / 'comparison.json'}")
    page = write_comparison_page(experiment, comparison, out)
    if not as_json:
        typer.echo(f"report: {page}")
