"""`fedmtl attack`: what a recorded run gives away."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.cli_options import Json
from simulations.terminal import print_json, told_in_lines

app = typer.Typer(
    help="Attack a run: what do its messages, or its model, tell of the clients' rows?",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recorded = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run folder of fedmtl simulate --record-wire.")
]
Client = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Whose update; default: the change of the shared trunk over the round, which all see.",
    ),
]
Round = Annotated[int, typer.Option("--round", metavar="N", min=1, help="Which round.")]
Data = Annotated[
    str | None, typer.Option(metavar="DIR", help="The raw data, if not where the run's is.")
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder to write; default: the run folder.")
]
Seed = Annotated[int, typer.Option(min=0, help="Draws what is random.")]
Shadows = Annotated[
    int, typer.Option(min=10, help="Shadow clients that the probe is fitted on; more are better.")
]
Count = Annotated[
    int | None,
    typer.Option("--rows", min=1, help="Rows that a client has; default: as the wire tells."),
]


@app.command()
def inversion(
    run: Recorded,
    client: Client = "",
    number: Round = 1,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="analytic: a fully connected first layer read off; dlg: L-BFGS on the distance of "
            "gradients; cosine: signed Adam on their angle.",
        ),
    ] = "cosine",
    heads: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="initial: of the experiment's seed; true: as the client had them; random; "
            "learned: beside the rows.",
        ),
    ] = "initial",
    labels: Annotated[
        str, typer.Option(metavar="NAME", help="known, or learned beside the rows.")
    ] = "known",
    local: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="one-gradient: the update as one step; unrolled: follow the client's local steps.",
        ),
    ] = "one-gradient",
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows to look for; default: as many as the wire tells."),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Default: 100 of L-BFGS, 1000 of Adam.")
    ] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Random starts; the best one counts.")] = 1,
    lr: Annotated[
        float, typer.Option(min=0, help="Step of method cosine, in units of encoded inputs.")
    ] = 0.1,
    total_variation: Annotated[
        float, typer.Option(min=0, help="Weight of the images' total variation; method cosine.")
    ] = 1e-3,
    data: Data = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Reconstruct a client's rows from its update, and compare with the true ones.

    Writes attack-inversion.json, a page, and a PNG of true and reconstructed
    images side by side. The errors stand beside those of guesses that saw no
    update: the mean of other rows, and other rows.
    """
    with told_in_lines():
        from simulations.attacks.inversion import invert
        from simulations.attacks.inversion_result import (
            describe_inversion,
            notes_of,
            table_of,
            write_inversion,
        )
        from simulations.attacks.inversion_settings import Settings
        from simulations.attacks.wire import open_wire

        wire = open_wire(run, data)
        settings = Settings(
            method, heads, labels, local, rows, iterations, restarts,
            lr=lr, total_variation=total_variation, seed=seed,
        )  # fmt: skip
        found = invert(wire, client, number, settings)
        figures = describe_inversion(wire, client, number, settings, found)
        paths = write_inversion(out or run, wire, figures, found)
        who = client or "the round's mean"
        tell_attack(f"inversion, {who}", figures, table_of, notes_of, paths, as_json=as_json)


@app.command()
def labels(
    run: Recorded,
    number: Round = 1,
    by: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="head: the last bias, where heads travel; probe: the trunk's update; or auto.",
        ),
    ] = "auto",
    shadows: Shadows = 150,
    rows: Count = None,
    data: Data = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Count the labels of every client of a round by what it sent.

    Writes attack-labels.json and a page. Beside the share of labels that are
    right stands the prior's: the class shares of rows that nobody trained on.
    """
    with told_in_lines():
        from simulations.attacks.labels import Settings, leak_labels
        from simulations.attacks.leak_results import (
            describe_labels,
            labels_notes,
            labels_table,
            write_labels,
        )
        from simulations.attacks.wire import open_wire

        wire, settings = open_wire(run, data), Settings(by, shadows, seed, rows)
        figures = describe_labels(wire, number, settings, leak_labels(wire, number, settings))
        paths = write_labels(out or run, figures)
        tell_attack("labels", figures, labels_table, labels_notes, paths, as_json=as_json)


@app.command()
def tasks(
    run: Recorded,
    number: Round = 1,
    shadows: Shadows = 150,
    rows: Count = None,
    data: Data = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Infer which tasks every client of a round trains, from its update.

    Writes attack-tasks.json and a page. Parts of the model that belong to one
    task tell by standing still; of the shared trunk, a probe fitted on shadow
    clients tells. AUC and accuracy stand beside the base rate.
    """
    with told_in_lines():
        from simulations.attacks.leak_results import (
            describe_tasks,
            tasks_notes,
            tasks_table,
            write_tasks,
        )
        from simulations.attacks.task_inference import Settings, infer_tasks
        from simulations.attacks.wire import open_wire

        wire, settings = open_wire(run, data), Settings(shadows, seed, rows)
        figures = describe_tasks(wire, number, settings, infer_tasks(wire, number, settings))
        paths = write_tasks(out or run, figures)
        tell_attack("tasks", figures, tasks_table, tasks_notes, paths, as_json=as_json)


def tell_attack(
    kind: str,
    figures: dict[str, Any],
    table: Callable[[Mapping[str, Any]], tuple[list[str], list[list[str]]]],
    notes: Callable[[Mapping[str, Any]], list[str]],
    paths: Sequence[Path],
    *,
    as_json: bool,
) -> None:
    """Print an attack's figures, what they mean, and where they were written."""
    from simulations.attacks.results import print_table

    if as_json:
        print_json(figures)
        return
    print_table(f"{figures['experiment']}: {kind}, round {figures['round']}", *table(figures))
    for line in [*notes(figures), *(f"written: {path}" for path in paths)]:
        typer.echo(line)
