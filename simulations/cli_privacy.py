"""The `fedmtl privacy` commands: what privacy will cost, and what it has cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.cli_options import Data, Json, Overrides
from simulations.terminal import print_json, told_in_lines

app = typer.Typer(
    help="Differential privacy: plan a budget, read what clients have paid.",
    no_args_is_help=True,
)


@app.command()
def plan(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT", help="A known experiment, or a TOML file; none: flags alone."
        ),
    ] = "",
    unit: Annotated[
        str, typer.Option(metavar="UNIT", help="client (default) or example: who is protected.")
    ] = "",
    epsilon: Annotated[
        float | None, typer.Option(help="Budget; the noise multiplier is worked out.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise in units of max-norm; epsilon is worked out.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Of the budget; default 1e-5.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds; default 20.")] = None,
    clients: Annotated[int | None, typer.Option(min=1, help="Clients of the federation.")] = None,
    clients_per_round: Annotated[
        int | None, typer.Option(min=1, help="Clients expected in a round; default: all.")
    ] = None,
    amplification: Annotated[
        bool,
        typer.Option(
            "--amplification", help="Unit client: a round is a Poisson sample, and a secret one."
        ),
    ] = False,
    local_noise: Annotated[
        bool,
        typer.Option("--local-noise", help="Unit client: each client adds all of the noise."),
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Unit example: a client's training rows.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Unit example: rows expected in a batch; default 32.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Unit example: local epochs per round; default 1.")
    ] = None,
    max_norm: Annotated[
        float | None, typer.Option(help="C, to which updates or gradients are clipped; default 1.")
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(min=1, help="P, numbers of an update; an experiment tells its own."),
    ] = None,
    accountant: Annotated[str, typer.Option(help="rdp (default), or pld: tighter, slower.")] = "",
    data: Data = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Which noise does a budget need, which budget does a noise cost, how large is it on the trunk?

    From flags alone:

    fedmtl privacy plan --epsilon 8 --rounds 100 --clients 1000 --clients-per-round 50
    --amplification --parameters 50000

    fedmtl privacy plan --unit example --noise-multiplier 1.1 --rows 60000 --batch-size 256
    --rounds 60

    Or for an experiment's whole run, with its clients, its rows and its model:

    fedmtl privacy plan school --set privacy.example-level.epsilon=6
    """
    with told_in_lines():
        given: dict[str, Any] = {
            "unit": unit,
            "epsilon": epsilon,
            "noise_multiplier": noise_multiplier,
            "delta": delta,
            "rounds": rounds,
            "clients": clients,
            "clients_per_round": clients_per_round,
            "amplification": amplification,
            "local_noise": local_noise,
            "rows": rows,
            "batch_size": batch_size,
            "epochs": epochs,
            "max_norm": max_norm,
            "parameters": parameters,
            "accountant": accountant,
        }
        from simulations.plan_command import make_plans
        from simulations.privacy_plan import print_plans

        given = {n: v for n, v in given.items() if v is not None and v is not False and v != ""}
        plans = make_plans(experiment, given, overrides or [], data)
        if as_json:
            print_json([each.to_json() for each in plans])
        else:
            from rich.console import Console

            print_plans(plans, Console())


@app.command()
def ledger(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|STATE", help="A simulation's run folder, or a node's state folder."
        ),
    ],
    client: Annotated[
        str, typer.Option(metavar="NAME", help="Show every reply of this client.")
    ] = "",
    as_json: Json = False,
) -> None:
    """What has every client released, and what has it paid?

    RUN|STATE is a simulation's run folder, or the state folder of a node, on that node.
    """
    with told_in_lines():
        from simulations.ledger_table import ledger_json, print_ledger, read_ledgers

        entries = read_ledgers(place, client)
        if as_json:
            print_json(ledger_json(entries))
        else:
            from rich.console import Console

            print_ledger(entries, Console(), replies=bool(client))
