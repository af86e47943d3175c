"""A deployment folder: what is in it, making one, adding a node to it."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.errors import ConfigError
from server.deployment.certificates import (
    certificate_pem,
    key_pem,
    make_authority,
    make_server_certificate,
)
from server.deployment.files import PRIVATE, PUBLIC, new_folder, render, write_new
from server.deployment.keys import make_node_key
from server.deployment.plan import (
    RECORD,
    Plan,
    check_days,
    check_nodes,
    dump_plan,
    is_ip,
    read_plan,
)

CA_CERTIFICATE, CA_KEY = "certificates/ca.crt", "certificates/ca.key"
SERVER_CERTIFICATE, SERVER_KEY = "certificates/server.crt", "certificates/server.key"
# File of the folder <- template, once per folder.
SHARED = {
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".dockerignore": "dockerignore",
    "Dockerfile": "Dockerfile",
    "compose.yaml": "compose.yaml",
    "superlink.env": "superlink.env",
    "operator/config.toml": "config.toml",
    "gateway/nginx.conf": "nginx.conf",
    "systemd/fedmtl-superlink.service": "superlink.service",
    "systemd/fedmtl-node@.service": "node.service",
    "kubernetes/namespace.yaml": "namespace.yaml",
    "kubernetes/superlink.yaml": "superlink.yaml",
}
# Once per node.
OF_NODE = {
    "nodes/{node}/policy.toml": "policy.toml",
    "nodes/{node}/node.env": "node.env",
    "compose.{node}.yaml": "compose-node.yaml",
    "kubernetes/node-{node}.yaml": "node.yaml",
}
OF_GPU_NODE = {"systemd/fedmtl-node@{node}.service.d/gpu.conf": "node-gpu.conf"}
PINNED = ("flwr", "torch", "numpy", "pydantic", "safetensors")  # for the image


def make_folder(folder: Path, plan: Plan, nodes: Sequence[str]) -> None:
    """Make a deployment folder.

    Raises:
        ConfigError: a name is wrong, the folder exists, or it cannot be written.
    """
    check_days(plan.days)
    check_nodes(nodes)
    if not nodes:
        raise ConfigError("--node must be given for each node, got none; write --node NAME")
    with new_folder(folder) as draft:
        authority = make_authority(plan.days)
        certificate, key = make_server_certificate(authority, plan)
        write_new(draft / CA_CERTIFICATE, certificate_pem(authority.certificate))
        write_new(draft / CA_KEY, key_pem(authority.key), PRIVATE)
        write_new(draft / SERVER_CERTIFICATE, certificate_pem(certificate))
        write_new(draft / SERVER_KEY, key_pem(key), PRIVATE)
        values = values_of(folder, plan)
        for name, template in SHARED.items():
            write_new(draft / name, render(template, values, gpu=plan.gpu))
        write_new(draft / "wheels" / "constraints.txt", pins())
        write_new(draft / RECORD, dump_plan(plan))
        for node in nodes:
            write_node(draft, plan, node, gpu=plan.gpu)


def add_node(folder: Path, node: str, gpu: bool | None = None) -> None:
    """Add a node to a deployment folder; no other file of it changes.

    Raises:
        ConfigError: the name is wrong or taken, or a file cannot be written.
    """
    plan = read_plan(folder)
    check_nodes([node])
    if node in nodes_of(folder):
        raise ConfigError(
            f"--node must be a new name, got '{node}', which {folder} has; for a new key of it "
            f"take fedmtl deploy rotate --node {node}"
        )
    taken = [name for name in names_of_node(node, gpu=True) if (folder / name).exists()]
    if taken:
        raise ConfigError(
            f"{folder / taken[0]} exists already and is not overwritten; move it away first"
        )
    write_node(folder, plan, node, gpu=plan.gpu if gpu is None else gpu)


def write_node(folder: Path, plan: Plan, node: str, *, gpu: bool) -> None:
    """Write a node's files.

    Raises:
        ConfigError: one exists, or cannot be written.
    """
    values = values_of(folder, plan) | {"node": node, "device": "cuda" if gpu else "cpu"}
    files = OF_NODE | (OF_GPU_NODE if gpu else {})
    for name, template in files.items():
        write_new(folder / name.format(node=node), render(template, values, gpu=gpu))
    private, public = make_node_key(node)
    write_new(folder / "keys" / node, private, PRIVATE)
    write_new(folder / "keys" / f"{node}.pub", public, PUBLIC)


def names_of_node(node: str, *, gpu: bool) -> list[str]:
    """List a node's files, by their names in the folder."""
    files = OF_NODE | (OF_GPU_NODE if gpu else {})
    return [name.format(node=node) for name in files] + [f"keys/{node}", f"keys/{node}.pub"]


def nodes_of(folder: Path) -> list[str]:
    """List the nodes of a folder."""
    place = folder / "nodes"
    return sorted(path.name for path in place.iterdir() if path.is_dir()) if place.exists() else []


def values_of(folder: Path, plan: Plan) -> dict[str, str]:
    """Collect what templates need."""
    return {
        "address": plan.address,
        "host": plan.host,
        "port": str(plan.port),
        "inner_port": str(plan.port + 1 if plan.port < 65535 else plan.port - 1),
        # Inside one Compose project the server's name leads to its container.
        "alias": "superlink" if is_ip(plan.host) else plan.host,
        "ca_certificate": str(folder.resolve() / CA_CERTIFICATE),
        "version": _version("fedmtl"),
    }


def pins() -> str:
    """Write a constraints file with the versions of this environment, for the image."""
    lines = []
    for package in PINNED:
        number = _version(package).partition("+")[0]  # the build, such as +cpu, is the host's
        lines.append(f"{package}=={number}\n")
    return "".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"{package} is not installed here, so that its version cannot be written into the "
            "image's constraints; run this from an environment that has fedmtl"
        ) from error
