"""`fedmtl attack`: what a recorded run gives away."""

from pathlib import Path
from typing import Annotated

import typer

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
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]


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
        int | None, typer.Option(min=1, help="Rows to look for; default: as many as the wire tells.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Default: 100 of L-BFGS, 1000 of Adam.")
    ] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Random starts; the best one counts.")] = 1,
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
        from simulations.attacks.inversion import Settings, invert
        from simulations.attacks.inversion_result import (
            describe_inversion,
            notes_of,
            table_of,
            write_inversion,
        )
        from simulations.attacks.results import print_table
        from simulations.attacks.wire import open_wire

        wire = open_wire(run, data)
        settings = Settings(
            method, heads, labels, local, rows, iterations, restarts,
            total_variation=total_variation, seed=seed,
        )  # fmt: skip
        found = invert(wire, client, number, settings)
        figures = describe_inversion(wire, client, number, settings, found)
        paths = write_inversion(out or run, wire, figures, found)
        if as_json:
            print_json(figures)
            return
        who = client or "the round's mean"
        print_table(f"{wire.experiment.name}: {who}, round {number}", *table_of(figures))
        for line in [*notes_of(figures), *(f"written: {path}" for path in paths)]:
            typer.echo(line)
