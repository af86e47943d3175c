"""New keys and certificates in the place of old ones, and what the operator does next."""

import json
import shlex
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConfigError
from server.deployment.certificates import (
    Authority,
    certificate_pem,
    key_pem,
    make_authority,
    make_server_certificate,
)
from server.deployment.files import PRIVATE, PUBLIC, replace_keeping_old
from server.deployment.folder import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    nodes_of,
)
from server.deployment.keys import make_node_key
from server.deployment.plan import Plan, read_plan

REGISTERED = "nodes/{node}/registered.json"  # what `flwr supernode register` answered
NewFiles = dict[Path, tuple[bytes, int]]


def rotate_server_certificate(folder: Path) -> tuple[list[Path], list[str]]:
    """Make a new server certificate and key, signed by the folder's CA.

    Returns:
        Where the old files are; and the steps that follow.

    Raises:
        ConfigError: the folder lacks its CA, or a file cannot be written.
    """
    plan = read_plan(folder)
    kept = replace_keeping_old(_new_server(folder, plan, read_authority(folder)))
    return kept, [
        "nodes need nothing: they trust the CA, which stays",
        *_server_steps(folder),
    ]


def rotate_node(folder: Path, node: str) -> tuple[list[Path], list[str]]:
    """Make a new key pair for a node.

    Returns:
        Where the old files are; and the steps that follow.

    Raises:
        ConfigError: the folder has no such node, or a file cannot be written.
    """
    read_plan(folder)
    if node not in nodes_of(folder):
        known = ", ".join(nodes_of(folder)) or "none"
        raise ConfigError(f"--node must be a node of {folder} ({known}), got '{node}'")
    private, public = make_node_key(node)
    keys = folder / "keys"
    files = {keys / node: (private, PRIVATE), keys / f"{node}.pub": (public, PUBLIC)}
    return replace_keeping_old(files), [
        "between rounds, or wait: a round in progress goes on without this node",
        f"export FLWR_HOME={quoted(folder.resolve() / 'operator')}",
        f"flwr supernode unregister {_node_id(folder, node)} fedmtl",
        register_command(folder, node),
        f"on the node's host: put {keys / node} in the place of /etc/fedmtl/{node}/node.key "
        "(mode 0600), then",
        f"systemctl restart fedmtl-node@{node}    # or restart its container or pod",
        f"fedmtl deploy check {quoted(folder)}    # and remove *.old-* once the node is back",
    ]


def rotate_authority(folder: Path) -> tuple[list[Path], list[str]]:
    """Make a new CA and a new server certificate.

    Returns:
        Where the old files are; and the steps that follow.

    Raises:
        ConfigError: a file cannot be written.
    """
    plan = read_plan(folder)
    authority = make_authority(plan.days)
    files: NewFiles = {
        folder / CA_CERTIFICATE: (certificate_pem(authority.certificate), PUBLIC),
        folder / CA_KEY: (key_pem(authority.key), PRIVATE),
        **_new_server(folder, plan, authority),
    }
    kept = replace_keeping_old(files)
    old = next((path for path in kept if path.name.startswith("ca.crt.")), folder / CA_CERTIFICATE)
    return kept, [
        "nodes that trust both CAs for a while stay connected; if the old key leaked, leave out "
        "this step and give every node the new ca.crt at once:",
        f"cat {quoted(folder / CA_CERTIFICATE)} {quoted(old)} > ca-both.crt",
        "on every node's host: put ca-both.crt in the place of /etc/fedmtl/NAME/ca.crt, then",
        "systemctl restart fedmtl-node@NAME    # or restart its container or pod",
        *_server_steps(folder),
        f"on every node's host: put {folder / CA_CERTIFICATE} in the place of ca-both.crt, and "
        "restart it",
    ]


def read_authority(folder: Path) -> Authority:
    """Read the folder's CA.

    Raises:
        ConfigError: its certificate or key is missing, cannot be read, or they do not fit.
    """
    path = folder / CA_CERTIFICATE
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        path = folder / CA_KEY
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; bring it back from where it is kept, or "
            "make a new CA with --ca"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is no PEM file without passphrase; bring it back") from error
    fits = key.public_key() == certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not fits:
        raise ConfigError(f"{path} is not the key of {CA_CERTIFICATE}; bring the right one back")
    return Authority(certificate, key)


def register_command(folder: Path, node: str) -> str:
    """Write the command that registers a node, and keeps the ID that it gets."""
    return (
        f"flwr supernode register {quoted(folder / 'keys' / f'{node}.pub')} fedmtl --name {node} "
        f"--format json > {quoted(folder / REGISTERED.format(node=node))}"
    )


def quoted(path: Path) -> str:
    """Write a path so that a shell reads it back."""
    return shlex.quote(str(path))


def _node_id(folder: Path, node: str) -> str:
    """Find the ID that the SuperLink gave a node; Flower's own list of nodes shows no names."""
    try:
        content = (folder / REGISTERED.format(node=node)).read_text(encoding="utf-8")
        return str(int(json.loads(content)["node-id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return "ID"


def _new_server(folder: Path, plan: Plan, authority: Authority) -> NewFiles:
    certificate, key = make_server_certificate(authority, plan)
    return {
        folder / SERVER_CERTIFICATE: (certificate_pem(certificate), PUBLIC),
        folder / SERVER_KEY: (key_pem(key), PRIVATE),
    }


def _server_steps(folder: Path) -> list[str]:
    place = folder / "certificates"
    return [
        f"on the server: put ca.crt, server.crt and server.key of {place} in the place of those in "
        "/etc/fedmtl (the key with mode 0600), then",
        "systemctl restart fedmtl-superlink    # or restart its container or pod",
        f"fedmtl deploy check {quoted(folder)}    # and remove *.old-* once the nodes are back",
    ]
