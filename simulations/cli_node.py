"""The `fedmtl node` commands: a node's owner runs and checks it."""

from pathlib import Path
from typing import Annotated

import typer

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
