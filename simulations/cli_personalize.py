"""`fedmtl personalize`: heads for a client that took no part in a run."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.cli_options import Json
from simulations.terminal import print_json, told_in_lines


def personalize(
    run_folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, of a simulation or a deployment.")
    ],
    client: Annotated[
        str, typer.Option(metavar="NAME", help="The newcomer; needed where there are several.")
    ] = "",
    data: Annotated[
        str | None, typer.Option(metavar="PATH", help="Its data, if not where the run's is.")
    ] = None,
    rows: Annotated[
        str, typer.Option(metavar="N1,N2,...", help="Numbers of training rows to fit on, or all.")
    ] = "all",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many; default: the run's rounds x local epochs."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Draws rows, new heads and batches; default: the run's."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting of training, such as training.lr=0.01.",
        ),
    ] = None,
    allow_participant: Annotated[
        bool, typer.Option("--allow-participant", help="Take a client that took part in the run.")
    ] = False,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write figures, and the model for fedmtl predict."),
    ] = None,
) -> None:
    """Fit heads for a newcomer on a run's trunk, and compare with training alone.

    RUN is a run folder, of a simulation or of a deployment's server.

    The trunk stays as it is. Beside it stand trunk and heads trained on from
    it, and trunk and heads from scratch, on the same rows by the same rules.

    --rows 5,20,80,all makes a table of how many rows it takes. Rows are drawn
    in the proportion of their classes; fewer are always among more.
    """
    with told_in_lines():
        from rich.console import Console

        from common.experiment_file import load_experiment
        from simulations.compare import require_new_folder
        from simulations.kept_trunk import open_trunk
        from simulations.newcomers import default_limits, parse_counts
        from simulations.personalize import (
            personalise,
            read_newcomer,
            write_personalised,
        )
        from simulations.personalized_table import print_personalised

        counts = parse_counts("--rows", rows)
        check_training_only(overrides or [])
        if out is not None:
            require_new_folder(out)
        kept = open_trunk(run_folder, data)
        settings = load_experiment(
            str(run_folder / "experiment.toml"), overrides or [], seed=seed, data_path=data
        )
        prepared = read_newcomer(kept, client, allow_participant=allow_participant)
        limits = default_limits(settings, epochs)
        made = personalise(kept, prepared, counts, settings, limits)
        if out is not None:
            write_personalised(made, out)
        if as_json:
            print_json(made.figures)
            return
        print_personalised(made.figures, Console())
        if out is not None:
            typer.echo(f"model and figures: {out}")


def check_training_only(overrides: list[str]) -> None:
    """Refuse settings that would ask for another model or other rows than the run's.

    Raises:
        ConfigError: names the first such setting.
    """
    for override in overrides:
        if not override.strip().startswith("training."):
            raise ConfigError(
                f"--set must name a setting of [training], got '{override}': the others are the "
                "run's own; remove it"
            )
        if override.strip().startswith(("training.schedule", "training.step-schedule")):
            raise ConfigError(
                f"--set must name a setting of the fit, got '{override}': schedules are of a "
                "federation's rounds, and the fit keeps to training.lr; remove it"
            )
