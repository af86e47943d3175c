"""The `fedmtl deploy` commands: helper files for those who operate a deployment."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.terminal import BAD_INPUT, told_in_lines

deploy_app = typer.Typer(
    help="Files of a deployment: certificates, keys, systemd units, Compose, Kubernetes.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="A deployment folder.")]


@deploy_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make.")],
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST[:PORT]", help="How nodes and operators reach the server; port 8000."
        ),
    ],
    node: Annotated[
        list[str], typer.Option(metavar="NAME", help="A node; repeated for each of them.")
    ],
    server_ip: Annotated[
        list[str] | None,
        typer.Option(metavar="IP", help="Another address of the server; may be repeated."),
    ] = None,
    days: Annotated[
        int, typer.Option(metavar="N", help="Days that the server's certificate is valid.")
    ] = 365,
    gpu: Annotated[bool, typer.Option("--gpu", help="Every node gets a GPU.")] = False,
) -> None:
    """Write a folder with all that a deployment's hosts need.

    A CA and the server's certificate, a key per node, systemd units, Compose files with a
    Dockerfile, Kubernetes manifests, a policy per node, and a README.md that says what goes where.
    """
    with told_in_lines():
        from server.deployment.folder import make_folder
        from server.deployment.plan import Plan, check_days, read_ips, read_server

        host, port = read_server(server)
        check_days(days)
        make_folder(folder, Plan(host, port, read_ips(server_ip or []), days, gpu), node)
        typer.echo(f"deployment folder: {folder}")
        typer.echo(f"what goes where: {folder / 'README.md'}")
        typer.echo(f"must not leave it: {folder / 'certificates' / 'ca.key'}")


@deploy_app.command()
def node(
    folder: Folder,
    node: Annotated[str, typer.Option(metavar="NAME", help="The new node.")],
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--no-gpu", help="Whether it gets a GPU; default: as the others."),
    ] = None,
) -> None:
    """Add a node to a deployment folder; no other file of it changes."""
    with told_in_lines():
        from server.deployment.folder import add_node
        from server.deployment.rotation import quoted, register_command

        add_node(folder, node, gpu)
        tell(
            [
                f"export FLWR_HOME={quoted(folder.resolve() / 'operator')}",
                register_command(folder, node),
                f"on the node's host: its files, as {folder / 'README.md'} says",
            ]
        )


@deploy_app.command()
def rotate(
    folder: Folder,
    server_certificate: Annotated[
        bool, typer.Option("--server-certificate", help="A new server certificate and key.")
    ] = False,
    node: Annotated[
        str | None, typer.Option(metavar="NAME", help="A new key pair for this node.")
    ] = None,
    ca: Annotated[
        bool, typer.Option("--ca", help="A new CA, and a new server certificate of it.")
    ] = False,
) -> None:
    """Make new keys or certificates; the old ones stay beside them as *.old-DATE.

    Prints the commands that follow.
    """
    with told_in_lines():
        from common.errors import ConfigError
        from server.deployment.rotation import (
            rotate_authority,
            rotate_node,
            rotate_server_certificate,
        )

        chosen = server_certificate + (node is not None) + ca
        if chosen != 1:
            raise ConfigError(
                "fedmtl deploy rotate must have one of --server-certificate, --node NAME and --ca, "
                f"got {chosen}"
            )
        if node is not None:
            kept, steps = rotate_node(folder, node)
        else:
            kept, steps = (rotate_authority if ca else rotate_server_certificate)(folder)
        for path in kept:
            typer.echo(f"old file kept: {path}")
        tell(steps)


@deploy_app.command()
def check(folder: Folder) -> None:
    """Check certificates, keys and files of a deployment folder; exit with 2 if one is wrong."""
    with told_in_lines():
        from client.node.policy import read_policy
        from server.deployment.inspection import inspect_folder

        findings = inspect_folder(folder, read_policy)
        for finding in findings:
            typer.echo(f"{finding.level + ':':<7}{finding.text}")
        if any(finding.level == "wrong" for finding in findings):
            raise typer.Exit(BAD_INPUT)


def tell(steps: list[str]) -> None:
    """Print what the operator does next."""
    typer.echo("next:")
    for step in steps:
        typer.echo(f"  {step}")
