"""The commands that use what a run made: predict and export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import CheckpointError, ConfigError, DataError
from simulations.terminal import told_in_lines

if TYPE_CHECKING:
    import torch

    from client.kept_model import KeptModel

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER", help="The state folder of a node, or the run folder of a simulation."
    ),
]
Client = Annotated[
    str, typer.Option(metavar="NAME", help="Whose heads; needed where there are several clients.")
]
RunName = Annotated[
    str, typer.Option(metavar="RUN", help="Of a state folder: which run, where there are several.")
]
RunData = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Of a simulation: its raw data, if that has moved."),
]


def predict(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="The state folder of a node, or the run folder of a simulation; of several, the "
            "average predicts.",
        ),
    ],
    rows: Annotated[
        Path, typer.Option(metavar="FILE", help="New rows: CSV, Parquet or NPZ, by its ending.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="CSV or Parquet to write.")],
    client: Client = "",
    run: RunName = "",
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Begins the names of predicted columns.")
    ] = "predicted.",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:N or mps.")
    ] = "cpu",
    data: RunData = None,
    snapshots: Annotated[
        bool,
        typer.Option(
            "--snapshots", help="Of a simulation: average over the rounds that it kept, too."
        ),
    ] = False,
) -> None:
    """Predict new rows with a trained trunk and a client's own heads.

    FOLDER is the state folder of a node or the run folder of a simulation. The new rows need the
    columns of the inputs; all their columns are kept, and predictions stand behind them.

    Of several FOLDERs the predictions are averaged: probabilities, and values in the target's unit.
    """
    with told_in_lines():
        from client.row_files import check_paths, read_rows, write_predictions

        require_unlike(folders)
        check_paths(rows, out)
        from client.prediction import predict_together
        from common.tables import ClientTable

        models = [
            model
            for folder in folders
            for model in open_models(folder, run, client, data, snapshots=snapshots)
        ]
        new = read_rows(rows)
        try:
            table = ClientTable(models[0].client, new.columns)
            predictions = predict_together(models, table, pick_device(device), prefix)
        except DataError as error:
            raise DataError(f"--rows {rows}: {error}") from error
        write_predictions(new, predictions, out)
        for note in predictions.notes:
            typer.echo(note, err=True)
        typer.echo(
            f"{out}: {int(predictions.usable.sum())} of {len(predictions.usable)} rows predicted "
            f"by {'; '.join(map(tell, models))}"
        )


def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")],
    format_name: Annotated[
        str, typer.Option("--format", metavar="NAME", help="torch, onnx or both.")
    ] = "both",
    client: Client = "",
    run: RunName = "",
    data: RunData = None,
) -> None:
    """Write a trained trunk and a client's heads as files that need no fedmtl.

    FOLDER is the state folder of a node or the run folder of a simulation. DIR gets model.pt2
    (torch.export), model.onnx and model.json, which describes inputs and outputs. Every file is
    read back and must give the model's numbers.
    """
    with told_in_lines():
        chosen = {"both": ("torch", "onnx"), "torch": ("torch",), "onnx": ("onnx",)}
        if format_name not in chosen:
            raise ConfigError(f"--format must be torch, onnx or both, got '{format_name}'")
        kept = open_kept(folder, run, client, data)
        from client.export import describe_check
        from client.export import export as export_files
        from client.prediction import describe_cover, describe_gaps

        differences = export_files(kept, out, chosen[format_name])
        for note in (*describe_gaps(kept), *describe_cover(kept)):
            typer.echo(note, err=True)
        for line in describe_check(differences):
            typer.echo(line)
        typer.echo(f"{out}: {tell(kept)}")


def require_unlike(folders: list[Path]) -> None:
    """Refuse to average a model with itself.

    Raises:
        ConfigError: a folder is there twice.
    """
    places = [folder.resolve() for folder in folders]
    if twice := [f for f, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise ConfigError(f"FOLDER must name each folder once, got {twice[0]} twice; remove one")


def open_kept(folder: Path, run: str, client: str, data: str | None) -> "KeptModel":
    """Read a client's model from either kind of folder.

    Raises:
        CheckpointError: it is neither, or holds no such model.
        ConfigError: an option is for the other kind.
    """
    if (folder / "experiment.toml").is_file():
        if run:
            raise ConfigError(f"--run is for state folders, and {folder} is one run; remove --run")
        from simulations.kept_run import open_run

        return open_run(folder, client, data)
    if (folder / "runs").is_dir():
        if data is not None:
            raise ConfigError("--data is for simulations; a node needs no data here; remove --data")
        from client.kept_model import open_kept

        return open_kept(folder, run, client)
    raise CheckpointError(
        f"{folder} must be the state folder of a node, with runs/ in it, or the run folder of a "
        "simulation, with experiment.toml in it, got neither"
    )


def open_models(
    folder: Path, run: str, client: str, data: str | None, *, snapshots: bool
) -> list["KeptModel"]:
    """Read a client's model, or those of all snapshots of a run and of its end.

    Raises:
        CheckpointError, ConfigError: as of `open_kept`; or there are no snapshots.
    """
    if not snapshots:
        return [open_kept(folder, run, client, data)]
    if run or not (folder / "experiment.toml").is_file():
        raise ConfigError(
            f"--snapshots is for run folders of simulations, and {folder} is none, or --run is "
            "given; remove it"
        )
    from simulations.kept_run import open_run_snapshots

    return open_run_snapshots(folder, client, data)


def pick_device(name: str) -> "torch.device":
    """Pick the device that an option names.

    Raises:
        ConfigError: there is none of that name.
    """
    from client.training import choose_device

    try:
        return choose_device(name)
    except ConfigError as error:
        raise ConfigError(str(error).replace("training.device", "--device")) from error
    except (RuntimeError, KeyError) as error:
        raise ConfigError(
            f"--device must be auto, cpu, cuda, cuda:N or mps, got '{name}'"
        ) from error


def tell(kept: "KeptModel") -> str:
    """Name a model in a line."""
    return f"run {kept.run}, client '{kept.client}', trunk of round {kept.round}"
