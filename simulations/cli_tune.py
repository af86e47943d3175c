"""`fedmtl tune`: search for better settings, and go on with a search that was interrupted."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError, FedMTLError
from simulations.cli_options import Data, Json
from simulations.terminal import INTERRUPTED, print_json, told_in_lines

if TYPE_CHECKING:
    from simulations.tuning.search import Search


def tune(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT", help="A known experiment (default: digits), or a TOML file."
        ),
    ] = "",
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES|FILE",
            help="A setting and its range or list, or a TOML file of such; may be repeated.",
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="loss (default), TASK/METRIC or TASK/loss, on validation rows; repeated: several.",
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option(metavar="NAME", help="tpe (default, Bayesian), random or grid.")
    ] = "",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trials in all, default 20; a grid has its own.")
    ] = None,
    prune: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="median (default): stop a trial at a round where it is worse than the median; "
            "none (default with several objectives).",
        ),
    ] = "",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Average every trial over seeds 0 to N-1; default 1.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trials at a time, each in a process.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Go on with this search; --trials may ask for more."),
    ] = None,
    data: Data = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of all trials."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write; default: a new one in runs/."),
    ] = None,
    track: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Show the figures of every round in tensorboard, mlflow or wandb, too, each run "
            "by itself; it changes no result, and may be given with --resume.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Search for settings that do better on validation rows.

    EXPERIMENT is a known one (`fedmtl list experiments`; digits unless named) or a TOML file.

    --space training.lr=log:0.001..0.1 draws by logarithm; trunk.dropout=0..0.5
    evenly; federation.rounds=10..40 whole numbers, as both ends are; and
    --space 'trunk.widths=[[32],[64,32]]' is a list of values, as TOML.
    A file says the same: "training.lr" = "log:0.001..0.1", a line each, or in
    tables. Settings of one table move together as a table:
    --space 'trunk=[{widths=[32]},{widths=[64], activation="tanh"}]'

    Any setting may be tuned but those that decide rows (data, partition),
    seed, and privacy. A trial that cannot run is pruned, with its reason.

    A trial is a run for each seed on the engine that --engine auto takes, read
    at its best round: of lowest validation loss, unless evaluation.best-by
    names a task. The experiment's own settings run first, to compare with;
    they are no trial. Pruning watches seed 0.

    The folder gets tune.json, tune.html, best.toml (fedmtl simulate
    DIR/best.toml), and with several objectives front/: the trials that none
    dominates; best.toml is then the one of the best mean rank among them.

    Ctrl-C leaves these files with what is done so far. After it, or a crash,
    --resume DIR goes on; trials under way start anew.
    """
    with told_in_lines():
        from simulations.tracking import parse_trackers
        from simulations.tuning.search import Search, start_search
        from simulations.tuning.study import require_optuna

        require_optuna()
        trackers = parse_trackers(track)
        if resume is not None:
            others = (experiment, space, objective, sampler, prune, seeds, data, overrides, out)
            if any(other for other in others):
                raise ConfigError(
                    "--resume goes on with the search as it began; give only --trials, --jobs or "
                    "--track with it."
                )
            out = resume
            if trials is not None:
                add_trials(Search.load(out), trials, out)
        else:
            search = read_search(
                experiment or "digits", space or [], objective or [], sampler, trials, prune,
                seeds or 1, data, overrides or [],
            )  # fmt: skip
            out = out or new_folder(search)
            start_search(search, out)
        run(out, jobs, trackers, as_json=as_json)


def read_search(
    experiment: str,
    space: list[str],
    objectives: list[str],
    sampler: str,
    trials: int | None,
    prune: str,
    seeds: int,
    data: str | None,
    overrides: list[str],
) -> "Search":
    """Collect what the command line asks for.

    Raises:
        ConfigError: the experiment or the space is wrong, or an option is for another sampler.
    """
    from common.experiment_file import dump_experiment, load_experiment
    from server.run_folder import command_line
    from simulations.tuning.search import DEFAULT_TRIALS, Search
    from simulations.tuning.space import grid_points, parse_space, read_space

    texts = read_space(space)
    parsed = parse_space(texts)
    settings = load_experiment(experiment, overrides, data_path=data)
    if sampler == "grid":
        if trials is not None:
            raise ConfigError(
                f"--trials is for the samplers tpe and random, got {trials} with grid, which tries "
                "every combination; remove it"
            )
        trials = sum(1 for _ in grid_points(parsed))
    return Search(
        experiment=dump_experiment(settings),
        space=texts,
        objectives=objectives,
        sampler=sampler or "tpe",
        prune=prune or ("none" if len(objectives) > 1 else "median"),
        seeds=seeds,
        trials=trials or DEFAULT_TRIALS,
        command=command_line(),
    )


def add_trials(search: "Search", trials: int, out: Path) -> None:
    """Ask an earlier search for more trials.

    Raises:
        ConfigError: these are fewer, or it is a grid.
    """
    if search.sampler == "grid" or trials < search.trials:
        least = "left out for a grid" if search.sampler == "grid" else f"at least {search.trials}"
        raise ConfigError(f"--trials must be {least} with this --resume, got {trials}")
    replace(search, trials=trials).save(out)


def new_folder(search: "Search") -> Path:
    """Name a folder after the experiment and the time."""
    import tomllib
    from datetime import datetime

    name = tomllib.loads(search.experiment)["name"]
    return Path("runs") / f"tune-{name}-{datetime.now():%Y%m%d-%H%M%S}"


def run(out: Path, jobs: int, trackers: Sequence[str] = (), *, as_json: bool) -> None:
    """Search with a line of progress on stderr; then the figures, the best file and the page.

    Raises:
        FedMTLError: the folder cannot be used, or no trial came to a figure.
        typer.Exit: interrupted; the search can be gone on with.
    """
    import logging

    from rich.console import Console

    from simulations.tuning.outcome import BEST, FIGURES, write_outcome
    from simulations.tuning.page import write_tuning_page
    from simulations.tuning.search import run_search
    from simulations.tuning.table import print_outcome

    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        with Console(stderr=True).status("tuning: the experiment's own settings ...") as status:
            tuning = run_search(
                out,
                jobs,
                lambda done, total: status.update(f"tuning: {done} of {total} trials"),
                trackers,
            )
    except KeyboardInterrupt:
        typer.echo("\nInterrupted.", err=True)
        leave(out)
        raise typer.Exit(INTERRUPTED) from None
    outcome = write_outcome(tuning)
    if as_json:
        print_json(outcome)
    else:
        print_outcome(outcome, Console())
        typer.echo(f"figures: {out / FIGURES}")
        typer.echo(f"best: fedmtl simulate {shlex.quote(str(out / BEST))}")
    page = write_tuning_page(tuning.experiment, outcome, out)
    if not as_json:
        typer.echo(f"report: {page}")


def leave(out: Path) -> None:
    """Write what an interrupted search has come to so far, and say how to go on with it."""
    from simulations.tuning.outcome import write_outcome
    from simulations.tuning.page import write_tuning_page
    from simulations.tuning.search import open_search

    try:
        tuning = open_search(out)
        page = write_tuning_page(tuning.experiment, write_outcome(tuning), out)
        told = f"What is done so far: {page}"
    except FedMTLError:  # such as no trial that is done
        told = "No trial is done yet."
    typer.echo(told, err=True)
    typer.echo(f"Go on with: fedmtl tune --resume {shlex.quote(str(out))}", err=True)
