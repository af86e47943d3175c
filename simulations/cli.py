"""The `fedmtl` command: simulate, compare, tune, personalize, check, report, runs, list, health.

What a command needs is imported inside it, so that `fedmtl --help` answers without PyTorch.
"""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import CheckpointError, ConfigError, FedMTLError
from common.resuming import check_changes
from simulations.cli_attack import app as attack_app
from simulations.cli_audit import audit, membership
from simulations.cli_deploy import deploy_app
from simulations.cli_ensemble import ensemble
from simulations.cli_evaluate import evaluate
from simulations.cli_health import health
from simulations.cli_node import app as node_app
from simulations.cli_personalize import personalize
from simulations.cli_predict import export, predict
from simulations.cli_privacy import app as privacy_app
from simulations.cli_runs import report, runs
from simulations.cli_tune import tune
from simulations.cli_yardstick import yardstick
from simulations.terminal import INTERRUPTED, print_json, told_in_lines

if TYPE_CHECKING:
    from common.experiment import Experiment
    from simulations.hostile import Hostile

app = typer.Typer(
    help="Federated multi-task learning: a shared trunk, task heads that stay with the clients.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(attack_app, name="attack")
app.add_typer(deploy_app, name="deploy")
app.add_typer(node_app, name="node")
app.add_typer(privacy_app, name="privacy")

DEFAULT_EXPERIMENT, DEFAULT_ENGINE = "digits", "loopback"

Name = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT", help="A known experiment (default: digits), or a TOML file."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder or file with the raw data; overrides data.path."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
Track = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Show the figures of every round in tensorboard, mlflow or wandb, too, each run by "
        "itself; it changes no result.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder to write; default: a new one in runs/.")
]


@app.callback()
def prepare() -> None:
    """Make output possible on terminals and pipes that lack a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@app.command()
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


@app.command()
def compare(
    experiment: Name = DEFAULT_EXPERIMENT,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2,...",
            help="Compare values of a setting; repeated, all combinations.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with seeds 0 to N-1.")] = 3,
    jobs: Annotated[
        int, typer.Option(min=1, help="Seeds compared at a time; with --vary, runs at a time.")
    ] = 1,
    no_yardstick: Annotated[
        bool,
        typer.Option(
            "--no-yardstick",
            help="With --vary: no single-task local training, and so no Delta-m.",
        ),
    ] = False,
    holdout_clients: Annotated[
        str,
        typer.Option(
            metavar="SHARE|N|NAMES",
            help="These clients take no part; their heads are fitted on the trunk afterwards.",
        ),
    ] = "",
    holdout_rows: Annotated[
        str, typer.Option(metavar="N1,N2,...", help="And on so many of their training rows.")
    ] = "",
    data: Data = None,
    overrides: Overrides = None,
    out: Out = None,
    track: Track = "",
    as_json: Json = False,
) -> None:
    """Does federating help? With --vary: which setting is best?

    EXPERIMENT is a known one (`fedmtl list experiments`; digits unless named) or a TOML file.

    Without --vary: local, federated and centralised training on the same splits.

    With --vary, the federation trains with every value of a setting, on the
    engine that --engine auto takes. Delta-m compares it with single-task local
    training by the experiment's own settings, once a seed; anew for each value
    only where the setting decides the rows (data, inputs, partition).

    --vary training.lr=0.1,0.01 --vary 'trunk.widths=[64],[64, 64]' makes four
    variants: commas in brackets, braces and quotes do not split. Settings of
    one table move together as a table, which replaces it:
    --vary 'trunk={widths=[32]},{widths=[64], activation="tanh"}'

    --holdout-clients 0.2 keeps a fifth of the clients, drawn by each seed, out
    of all trainings. A second table tells how their heads do on the federated
    trunk against each of them alone, with all training rows and with fewer.

    A run is read at its best round: of lowest validation loss, unless
    evaluation.best-by names a task. The folder gets comparison.json,
    comparison.html, and a run folder for every federation.
    """
    with told_in_lines():
        if no_yardstick and not vary:
            raise ConfigError("--no-yardstick is for --vary; remove it, or vary a setting.")
        if holdout_rows and not holdout_clients:
            raise ConfigError("--holdout-rows needs --holdout-clients; add it, or remove the rows.")
        logging.getLogger("flwr").setLevel(logging.WARNING)
        from simulations.tracking import parse_trackers

        trackers, holdout = parse_trackers(track), None
        if holdout_clients:
            from simulations.holdout import parse_holdout

            holdout = parse_holdout(holdout_clients, holdout_rows)
        plan = None
        if vary:
            from simulations.variants import plan_variants

            plan = plan_variants(
                experiment, vary, overrides or [], data, with_yardstick=not no_yardstick
            )
        settings = plan.experiment if plan else load(experiment, overrides or [], data)
        out = out or new_folder(f"compare-{settings.name}")
        from simulations.compare_command import run_comparison, tell_comparison
        from simulations.tracked_run import Track as Told

        told = Told(trackers, out)
        comparison = run_comparison(plan or settings, seeds, jobs, out, holdout, told)
        tell_comparison(settings, comparison, out, as_json=as_json)


@app.command()
def check(
    experiment: Name = DEFAULT_EXPERIMENT,
    data: Data = None,
    overrides: Overrides = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of experiment files instead.")
    ] = False,
) -> None:
    """Validate an experiment and every client's data, without training.

    EXPERIMENT is a known one (`fedmtl list experiments`; digits unless named) or a TOML file.
    """
    with told_in_lines():
        if schema:
            from common.experiment_file import json_schema

            print_json(json_schema())
            return
        settings = load(experiment, overrides or [], data)
        from rich.console import Console

        from simulations.check import check_clients, print_check

        print_check(settings, check_clients(settings), Console())


app.command()(report)
app.command()(runs)
app.command()(health)


@app.command("list")
def list_choices(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="One heading, such as metrics; default: all.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Name what there is to choose, each with a line and its paper.

    WHAT is one heading, such as metrics; all unless named.
    """
    with told_in_lines():
        from rich.console import Console

        from simulations.catalogue import catalogue, print_catalogue, select, to_json

        chosen = select(catalogue(), what)
        if as_json:
            print_json(to_json(chosen))
        else:
            print_catalogue(chosen, Console())


app.command()(evaluate)
app.command()(yardstick)
app.command()(predict)
app.command()(export)
app.command()(personalize)
app.command()(ensemble)
app.command()(tune)
attack_app.command()(membership)
attack_app.command()(audit)


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


def load(
    experiment: str, overrides: Sequence[str], data: str | None, seed: int | None = None
) -> "Experiment":
    """Read an experiment with what the command line overrides."""
    from common.experiment_file import load_experiment

    return load_experiment(experiment, overrides, seed=seed, data_path=data)


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


def new_folder(name: str) -> Path:
    """Name a run folder after the experiment and the time."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def how_to_resume(folder: Path) -> str:
    """Say what to do with an interrupted run."""
    if (folder / "checkpoint" / "checkpoint.json").exists():
        return f"Interrupted. Go on with: fedmtl simulate --resume {shlex.quote(str(folder))}"
    return "Interrupted before the first round was saved; there is nothing to resume."
