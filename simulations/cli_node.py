"""The `fedmtl node` commands: a node's owner runs and checks it."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli_options import Overrides
from simulations.terminal import told_in_lines

app = typer.Typer(
    help="A node of a deployed federation: run it, check what it would do.",
    no_args_is_help=True,
)

Flags = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- FLAGS", help="Flags of flower-supernode, after --."),
]


@app.command()
def run(
    flags: Flags = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the node's owner allows; default: everything."),
    ] = None,
) -> None:
    """Run a node: Flower's SuperNode, behind its owner's policy, with a worker that stays warm.

    Takes the flags of flower-supernode after --. --node-config must name a state folder:

    fedmtl node run --policy policy.toml -- --superlink HOST:8000 --root-certificates ca.crt
    --auth-supernode-private-key node.key --node-config 'data="rows" state="state"'
    """
    with told_in_lines():
        import logging
        import signal
        import sys

        from client.node.run import Node

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every poll
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        Node(policy, flags or []).run()


@app.command()
def check(
    experiment: Annotated[
        str,
        typer.Option(metavar="EXPERIMENT", help="A known experiment, or a TOML file."),
    ],
    data: Annotated[
        str, typer.Option(metavar="DIR", help="Folder or file with the node's rows.")
    ] = "",
    node_config: Annotated[
        str,
        typer.Option(metavar="TEXT", help="As flower-supernode takes it; --data goes before it."),
    ] = "",
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the node's owner allows; default: everything."),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
) -> None:
    """Without a server: does the data fit, what would leave this machine, how large is it?

    Answers one query, one round of training and one evaluation, in a state folder that is thrown
    away, and holds the replies against the policy. Exits with 1 where the policy refuses one.
    """
    with told_in_lines():
        import tempfile

        from client.node.dry_run import dry_run
        from client.node.policy import Policy, read_policy
        from client.node.supernode import read_node_config
        from common.experiment_file import load_experiment
        from simulations.node_check import print_node_check, to_json
        from simulations.terminal import print_json

        settings = load_experiment(experiment, overrides or [], data_path=data or None)
        config = read_node_config(node_config)
        with tempfile.TemporaryDirectory() as folder:
            config |= {"state": folder} | ({"data": data} if data else {})
            rules = Policy() if policy is None else read_policy(policy)
            checked = dry_run(settings, config, rules)
        if as_json:
            print_json(to_json(settings, checked))
        else:
            from rich.console import Console

            print_node_check(settings, checked, Console())
        if any(exchange.refused for exchange in checked.exchanges):
            raise typer.Exit(1)
