"""The command that trains a federation on one machine, or goes on with one that was interrupted."""

import json
import shlex
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import CheckpointError, ConfigError, FedMTLError
from common.resuming import check_changes
from simulations.cli_options import (
    DEFAULT_EXPERIMENT,
    Data,
    Json,
    Name,
    Out,
    Overrides,
    load,
    new_folder,
)
from simulations.terminal import INTERRUPTED, print_json, told_in_lines

if TYPE_CHECKING:
    from common.experiment import Experiment
    from simulations.hostile import Hostile

DEFAULT_ENGINE = "loopback"


def simulate(
    experiment: Name = "",
    engine: Annotated[
        str,
        typer.Option(metavar="NAME", help="loopback (default), batched, auto or flower."),
    ] = "",
    workers: Annotated[
        int, typer.Option(min=1, help="Processes of the loopback engine; the result is the same.")
    ] = 1,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the experiment's seed.")] = None,
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with this interrupted run.")
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Tell where a round's time goes: a table, and profile.json in the run folder. "
            "For one process: no --workers, no --engine flower.",
        ),
    ] = False,
    hostile: Annotated[
        str | None,
        typer.Option(
            metavar="ATTACK=SHARE",
            help="Let a share of the clients send wrong trunks, as in sign-flip=0.2: sign-flip, "
            "scaled, nan or replayed. See docs/participation.md.",
        ),
    ] = None,
    record_wire: Annotated[
        bool,
        typer.Option(
            "--record-wire",
            help="Write all that travels into wire/ of the run folder, for fedmtl attack.",
        ),
    ] = False,
    track: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Show the figures of every round in tensorboard, mlflow or wandb, too; it changes "
            "no result, and may be given with --resume.",
        ),
    ] = "",
    as_json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress, warnings only.")
    ] = False,
) -> None:
    """Train a whole federation on this machine.

    EXPERIMENT is a known one (`fedmtl list experiments`; digits unless named) or a TOML file.
    """
    with told_in_lines():
        from simulations.tracking import parse_trackers

        overrides, trackers = overrides or [], parse_trackers(track)
        if resume is not None:
            others = (experiment, seed is not None, out is not None, engine, hostile, record_wire)
            if any(others):
                raise ConfigError(
                    "--resume goes on with the run's own experiment, seed, engine, folder, hostile "
                    "clients and record of what travels; give only --data or --set with it."
                )
            settings, engine = read_interrupted(resume, overrides, data)
            out = resume
        else:
            settings = load(experiment or DEFAULT_EXPERIMENT, overrides, data, seed)
            engine = engine or DEFAULT_ENGINE
            check_engine(engine)
            if engine == "auto":
                engine = explain_choice(settings, workers)
            out = out or new_folder(settings.name)
        run(
            settings,
            engine,
            out,
            resume=resume is not None,
            workers=workers,
            profile=profile,
            hostile=hostile,
            record=record_wire,
            trackers=trackers,
            as_json=as_json,
            quiet=quiet,
        )


def run(
    experiment: "Experiment",
    engine: str,
    out: Path,
    *,
    resume: bool,
    workers: int,
    profile: bool,
    hostile: str | None,
    record: bool = False,
    trackers: Sequence[str] = (),
    as_json: bool,
    quiet: bool,
) -> None:
    """Simulate with progress on stderr; then the figures on stdout, and the report.

    Raises:
        FedMTLError: the settings, the data or the run folder cannot be used, or the report cannot
            be written.
        typer.Exit: interrupted; the run can be resumed.
    """
    from rich.console import Console

    from simulations.live import show_progress
    from simulations.tracking import Tracking

    tracking = Tracking(trackers, out, experiment)
    try:
        with (
            show_progress(experiment, Console(stderr=True), quiet=quiet) as listener,
            closing(tracking),
        ):
            from simulations.simulate import simulate as simulate_rounds

            def on_round(line: dict[str, Any]) -> None:
                listener.on_round(line)
                tracking.on_round(line)

            attackers = draw_hostile(experiment, hostile) if hostile is not None else None
            results = simulate_rounds(
                experiment,
                engine=engine,
                out=out,
                resume=resume,
                workers=workers,
                profile=profile,
                listener=on_round,
                hostile=attackers,
                record=record,
            )
            tracking.finish(results)
        tell_results(experiment, results, out, profile=profile, as_json=as_json)
    except KeyboardInterrupt:
        typer.echo(f"\n{how_to_resume(out)}", err=True)
        raise typer.Exit(INTERRUPTED) from None


def tell_results(
    experiment: "Experiment", results: dict[str, Any], out: Path, *, profile: bool, as_json: bool
) -> None:
    """Print the figures and write the report, whose failure is told last: they do not need it.

    Raises:
        FedMTLError: the report cannot be written.
    """
    from rich.console import Console

    from simulations.profile import read_profile
    from simulations.report import write_report
    from simulations.summary import print_profile, print_summary

    measured = read_profile(out) if profile else None
    if not as_json:
        print_summary(experiment, results, Console())
        if measured is not None:
            print_profile(measured, Console())
        typer.echo(f"run folder: {out}")
    page, failure = None, None
    try:
        page = str(write_report(out))
    except FedMTLError as error:
        failure = error
    if as_json:
        extra = {} if measured is None else {"profile": measured}
        print_json({"run": str(out), "report": page, **results, **extra})
    if failure is not None:
        raise failure
    if not as_json:
        typer.echo(f"report: {page}")


def draw_hostile(experiment: "Experiment", text: str) -> "Hostile":
    """Draw the hostile clients that ``--hostile`` asks for, and name them on stderr."""
    from common.clients import open_clients
    from simulations.hostile import Hostile, parse_hostile

    attack, share = parse_hostile(text)
    hostile = Hostile.draw(attack, share, open_clients(experiment).names, experiment.seed)
    typer.echo(f"hostile ({attack}): {', '.join(sorted(hostile.clients))}", err=True)
    return hostile


def read_interrupted(
    folder: Path, overrides: Sequence[str], data: str | None
) -> tuple["Experiment", str]:
    """Read the experiment and the engine of a run that is to go on.

    Raises:
        CheckpointError: this is no run folder.
        ConfigError: an override would make it another experiment.
    """
    check_changes(overrides, "With --resume, --set")
    if not (folder / "experiment.toml").is_file():
        raise CheckpointError(f"{folder} is no run folder: it has no experiment.toml.")
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        engine = str(environment["engine"])
    except (OSError, ValueError, KeyError, TypeError):
        engine = DEFAULT_ENGINE
    check_engine(engine)
    return load(str(folder / "experiment.toml"), overrides, data), engine


def check_engine(engine: str) -> None:
    """Refuse an engine that does not exist."""
    from simulations.catalogue import ENGINES

    if engine not in ENGINES:
        raise ConfigError(f"--engine must be one of {', '.join(ENGINES)}, got '{engine}'.")


def explain_choice(experiment: "Experiment", workers: int) -> str:
    """Choose the engine for an experiment, and say which and why on stderr."""
    from simulations.simulate import choose_engine

    engine, reason = choose_engine(experiment, workers)
    typer.echo(f"engine {engine}: {reason}", err=True)
    return engine


def how_to_resume(folder: Path) -> str:
    """Say what to do with an interrupted run."""
    if (folder / "checkpoint" / "checkpoint.json").exists():
        return f"Interrupted. Go on with: fedmtl simulate --resume {shlex.quote(str(folder))}"
    return "Interrupted before the first round was saved; there is nothing to resume."
