"""Options and arguments that several commands take, and what they mean."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from common.experiment import Experiment

DEFAULT_EXPERIMENT = "digits"

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


def load(
    experiment: str, overrides: Sequence[str], data: str | None, seed: int | None = None
) -> "Experiment":
    """Read an experiment with what the command line overrides."""
    from common.experiment_file import load_experiment

    return load_experiment(experiment, overrides, seed=seed, data_path=data)


def new_folder(name: str) -> Path:
    """Name a run folder after the experiment and the time."""
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
