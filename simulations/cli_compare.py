"""The command that compares: federating with its alternatives, or values of settings."""

import logging
from typing import Annotated

import typer

from common.errors import ConfigError
from simulations.cli_options import (
    DEFAULT_EXPERIMENT,
    Data,
    Json,
    Name,
    Out,
    Overrides,
    Track,
    load,
    new_folder,
)
from simulations.terminal import told_in_lines


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
