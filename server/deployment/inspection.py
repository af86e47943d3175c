"""Whether a deployment folder is fit for use: a finding for every certificate, key and file."""

import stat
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import FedMTLError
from server.deployment.certificates import names_of
from server.deployment.folder import (
    CA_CERTIFICATE,
    CA_KEY,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    SHARED,
    names_of_node,
    nodes_of,
)
from server.deployment.plan import Plan, read_plan
from server.deployment.schemas import check_manifests

SOON = timedelta(days=30)
OLD = "*.old-*"


@dataclass(frozen=True)
class Finding:
    """One line of the check.

    Attributes:
        level: ok; note, which needs no action now; or wrong.
        text: which file, and what about it.
    """

    level: Literal["ok", "note", "wrong"]
    text: str


def inspect_folder(folder: Path, read_policy: Callable[[Path], object]) -> list[Finding]:
    """Check everything in a deployment folder.

    Args:
        folder: the folder.
        read_policy: reads a node's policy as the node does.

    Raises:
        ConfigError: it is none.
    """
    plan = read_plan(folder)
    return [
        *_missing(folder),
        *_certificates(folder, plan),
        *_node_keys(folder),
        *_modes(folder),
        *_tables(folder),
        *_policies(folder, read_policy),
        *(Finding(level, text) for level, text in check_manifests(folder)),
        *_leftovers(folder),
    ]


def _missing(folder: Path) -> Iterator[Finding]:
    nodes = nodes_of(folder)
    names = [*SHARED, *(name for node in nodes for name in names_of_node(node, gpu=False))]
    for name in names:
        if not (folder / name).is_file():
            yield Finding("wrong", f"{name}: missing")
    if not nodes:
        yield Finding("wrong", "nodes: none; add one with fedmtl deploy node")


def _certificates(folder: Path, plan: Plan) -> Iterator[Finding]:
    authority = _certificate(folder / CA_CERTIFICATE)
    server = _certificate(folder / SERVER_CERTIFICATE)
    for name, certificate in ((CA_CERTIFICATE, authority), (SERVER_CERTIFICATE, server)):
        if certificate is None:
            yield Finding("wrong", f"{name}: no readable PEM certificate")
        else:
            yield _dates(name, certificate)
    if server is not None:
        lacking = sorted({*plan.names, *plan.all_ips} - {*names_of(server)})
        if lacking:
            yield Finding("wrong", f"{SERVER_CERTIFICATE}: is not for {', '.join(lacking)}")
        else:
            yield Finding("ok", f"{SERVER_CERTIFICATE}: for {', '.join(names_of(server))}")
    if server is not None and authority is not None:
        yield _issued(server, authority)
    if (folder / CA_KEY).exists():
        yield _pair(folder, CA_KEY, CA_CERTIFICATE, authority)
    else:
        yield Finding("note", f"{CA_KEY}: not here; fedmtl deploy rotate needs it")
    yield _pair(folder, SERVER_KEY, SERVER_CERTIFICATE, server)


def _certificate(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _dates(name: str, certificate: x509.Certificate) -> Finding:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = datetime.now(UTC)
    if now < first:
        return Finding("wrong", f"{name}: valid only from {first:%Y-%m-%d}; is this clock right?")
    if now > last:
        return Finding("wrong", f"{name}: ran out on {last:%Y-%m-%d}; see fedmtl deploy rotate")
    level: Literal["ok", "note"] = "note" if last - now < SOON else "ok"
    return Finding(level, f"{name}: valid until {last:%Y-%m-%d}, {(last - now).days} days")


def _issued(server: x509.Certificate, authority: x509.Certificate) -> Finding:
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return Finding("wrong", f"{SERVER_CERTIFICATE}: not signed by {CA_CERTIFICATE}")
    return Finding("ok", f"{SERVER_CERTIFICATE}: signed by {CA_CERTIFICATE}")


def _pair(
    folder: Path, key_name: str, certificate_name: str, certificate: x509.Certificate | None
) -> Finding:
    try:
        key = serialization.load_pem_private_key((folder / key_name).read_bytes(), None)
    except (OSError, ValueError, TypeError):
        return Finding("wrong", f"{key_name}: no readable PEM key without passphrase")
    if certificate is None or key.public_key() != certificate.public_key():
        return Finding("wrong", f"{key_name}: not the key of {certificate_name}")
    return Finding("ok", f"{key_name}: the key of {certificate_name}")


def _node_keys(folder: Path) -> Iterator[Finding]:
    seen: dict[bytes, str] = {}
    for node in nodes_of(folder):
        name = f"keys/{node}"
        try:
            private = serialization.load_ssh_private_key((folder / name).read_bytes(), None)
            public = serialization.load_ssh_public_key((folder / f"{name}.pub").read_bytes())
        except (OSError, ValueError, TypeError):
            yield Finding("wrong", f"{name}, {name}.pub: no readable OpenSSH key pair")
            continue
        raw = public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            yield Finding("wrong", f"{name}: must be an ECDSA key (NIST curve), as Flower wants it")
        elif private.public_key() != public:
            yield Finding("wrong", f"{name}: does not fit {name}.pub")
        elif raw in seen:
            yield Finding("wrong", f"{name}: the same key as keys/{seen[raw]}; rotate one of them")
        else:
            yield Finding("ok", f"{name}: fits {name}.pub")
        seen.setdefault(raw, node)


def _modes(folder: Path) -> Iterator[Finding]:
    certificates, keys = folder / "certificates", folder / "keys"
    found = sorted({*certificates.glob("*.key*"), *keys.glob("*")})
    open_ones = 0
    for path in found:
        if ".pub" in path.name or not path.is_file():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            open_ones += 1
            name = path.relative_to(folder)
            yield Finding("wrong", f"{name}: mode {mode:04o}, others can read it; chmod 600 {name}")
    if not open_ones:
        yield Finding("ok", "private keys: readable by their owner alone")


def _tables(folder: Path) -> Iterator[Finding]:
    name = "operator/config.toml"
    if not (folder / name).is_file():
        return  # told among those missing
    try:
        table = tomllib.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield Finding("wrong", f"{name}: no TOML: {error}")
        return
    yield _connection(name, table) if "superlink" in table else Finding("ok", f"{name}: TOML")


def _policies(folder: Path, read_policy: Callable[[Path], object]) -> Iterator[Finding]:
    for node in nodes_of(folder):
        name = f"nodes/{node}/policy.toml"
        if not (folder / name).is_file():
            continue  # told among those missing
        try:
            read_policy(folder / name)
        except FedMTLError as error:
            for line in str(error).splitlines():
                yield Finding("wrong", line.replace(f"policy {folder / name}", name, 1))
        else:
            yield Finding("ok", f"{name}: a policy")


def _connection(name: str, table: dict[str, object]) -> Finding:
    superlink = table["superlink"]
    connection = superlink.get("fedmtl") if isinstance(superlink, dict) else None
    path = connection.get("root-certificates") if isinstance(connection, dict) else None
    if not isinstance(path, str) or not Path(path).is_absolute() or not Path(path).is_file():
        return Finding(
            "wrong", f"{name}: superlink.fedmtl.root-certificates must be the absolute path of "
            f"ca.crt, got '{path}'"
        )  # fmt: skip
    return Finding("ok", f"{name}: root-certificates found")


def _leftovers(folder: Path) -> Iterator[Finding]:
    old = sorted(str(path.relative_to(folder)) for path in folder.rglob(OLD))
    if old:
        yield Finding("note", f"kept by rotations: {', '.join(old)}; remove what nobody uses")
