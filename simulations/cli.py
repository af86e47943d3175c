"""The `fedmtl` command, of whose commands most stand in modules of their own, `cli_...`.

What a command needs is imported inside it, so that `fedmtl --help` answers without PyTorch.
"""

import sys
from typing import Annotated

import typer

from simulations.cli_attack import app as attack_app
from simulations.cli_audit import audit, membership
from simulations.cli_compare import compare
from simulations.cli_deploy import deploy_app
from simulations.cli_ensemble import ensemble
from simulations.cli_evaluate import evaluate
from simulations.cli_health import health
from simulations.cli_node import app as node_app
from simulations.cli_options import DEFAULT_EXPERIMENT, Data, Json, Name, Overrides, load
from simulations.cli_personalize import personalize
from simulations.cli_predict import export, predict
from simulations.cli_privacy import app as privacy_app
from simulations.cli_runs import report, runs
from simulations.cli_simulate import simulate
from simulations.cli_tune import tune
from simulations.cli_yardstick import yardstick
from simulations.terminal import print_json, told_in_lines

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


@app.callback()
def prepare() -> None:
    """Make output possible on terminals and pipes that lack a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


app.command()(simulate)
app.command()(compare)


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
