"""What a deployment folder is for: the server's address, its other names, its nodes' names."""

import ipaddress
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from common.errors import ConfigError

RECORD = "deploy.toml"
DEFAULT_PORT = 8000
DEFAULT_DAYS, MOST_DAYS = 365, 36500
# Names that the certificate holds whatever the server is called: the SuperLink's own processes
# speak to it on loopback, and pods of its cluster by its service.
ALWAYS_NAMES = ("localhost", "fedmtl-superlink", "fedmtl-superlink.fedmtl.svc")
ALWAYS_IPS = ("127.0.0.1", "::1")

LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
# One spelling that is a file name, a systemd instance, a service of Compose and a Kubernetes name.
NODE = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
RESERVED = ("superlink",)


@dataclass(frozen=True)
class Plan:
    """The record of a deployment folder.

    Attributes:
        host: name or IP address by which nodes and operators reach the server.
        port: of everything.
        ips: further addresses of the server, for its certificate.
        days: for which server certificates are made.
        gpu: whether nodes get a GPU unless told otherwise.
    """

    host: str
    port: int = DEFAULT_PORT
    ips: tuple[str, ...] = ()
    days: int = DEFAULT_DAYS
    gpu: bool = False

    @property
    def address(self) -> str:
        """What `--superlink` takes: host:port, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def names(self) -> tuple[str, ...]:
        """DNS names of the server's certificate."""
        return tuple(dict.fromkeys((*([] if is_ip(self.host) else [self.host]), *ALWAYS_NAMES)))

    @property
    def all_ips(self) -> tuple[str, ...]:
        """IP addresses of the server's certificate."""
        own = [self.host] if is_ip(self.host) else []
        return tuple(dict.fromkeys((*own, *self.ips, *ALWAYS_IPS)))


def read_server(text: str) -> tuple[str, int]:
    """Read HOST[:PORT].

    Returns:
        The host in lower case, without brackets; and the port.

    Raises:
        ConfigError: one of them is none.

    >>> read_server("fl.example.org"), read_server("[2001:db8::7]:9000")
    (('fl.example.org', 8000), ('2001:db8::7', 9000))
    """
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", text)
    if bracketed:
        host, port = bracketed.groups()
    elif is_ip(text):
        host, port = text, None
    else:
        host, colon, port = text.partition(":")
        port = port if colon else None
    if bracketed and not is_ip(host):
        raise ConfigError(_no_host(text))
    if not is_ip(host) and not is_host_name(host):
        raise ConfigError(_no_host(text))
    return _canonical(host), DEFAULT_PORT if port is None else _read_port(port, text)


def is_ip(text: str) -> bool:
    """Tell whether it is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def is_host_name(text: str) -> bool:
    """Tell whether it is a DNS name (RFC 1123); four numbers are a mistyped address, not a name."""
    labels = text.split(".")
    numeric = labels[-1].isdigit()
    return len(text) <= 253 and not numeric and all(LABEL.fullmatch(label) for label in labels)


def read_ips(texts: Sequence[str]) -> tuple[str, ...]:
    """Read `--server-ip`.

    Raises:
        ConfigError: one is no IP address.
    """
    for text in texts:
        if not is_ip(text):
            raise ConfigError(
                f"--server-ip must be an IPv4 or IPv6 address, got '{text}'; a name of the server "
                "goes to --server"
            )
    return tuple(dict.fromkeys(_canonical(text) for text in texts))


def check_nodes(names: Sequence[str]) -> None:
    """Check the names of nodes.

    Raises:
        ConfigError: one cannot name a node, or two are the same.
    """
    for name in names:
        if not NODE.fullmatch(name) or name in RESERVED:
            raise ConfigError(
                "--node must be at most 40 lower-case letters, digits and hyphens, the first and "
                f"last no hyphen, and not '{RESERVED[0]}', got '{name}'; it names files, services "
                "and pods. The client's own name in the data goes to client= in --node-config"
            )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"--node must name each node once, got '{twice[0]}' {names.count(twice[0])} times; "
            "remove the others"
        )


def check_days(days: int) -> None:
    """Check for how long certificates are to be made.

    Raises:
        ConfigError: not a length.
    """
    if not 1 <= days <= MOST_DAYS:
        raise ConfigError(f"--days must be from 1 to {MOST_DAYS}, got {days}; a year is 365")


def dump_plan(plan: Plan) -> str:
    """Write the record as TOML."""
    values = {
        "server": plan.address,
        "server-ips": list(plan.ips),
        "days": plan.days,
        "gpu": plan.gpu,
    }
    return "# Written by fedmtl deploy init; the other deploy commands read it.\n" + tomli_w.dumps(
        values
    )


def read_plan(folder: Path) -> Plan:
    """Read a folder's record.

    Raises:
        ConfigError: this is no deployment folder, or its record is wrong.
    """
    path = folder / RECORD
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} is no deployment folder: it has no {RECORD}; make one with fedmtl deploy "
            "init"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path} cannot be read: {reason}; correct it") from error
    return _plan_of(values, path)


def _plan_of(values: dict[str, object], path: Path) -> Plan:
    server, ips, days = values.get("server"), values.get("server-ips", []), values.get("days")
    if not isinstance(server, str) or not isinstance(ips, list) or type(days) is not int:
        raise ConfigError(
            f"{path} must have server, a text, server-ips, a list of texts, and days, a whole "
            "number; correct it"
        )
    host, port = read_server(server)
    check_days(days)
    gpu = values.get("gpu") is True
    return Plan(host, port, read_ips([str(ip) for ip in ips]), days, gpu)


def _canonical(host: str) -> str:
    return str(ipaddress.ip_address(host)) if is_ip(host) else host.lower()


def _read_port(text: str, server: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65535):
        raise ConfigError(
            f"--server must have a port from 1 to 65535 after the colon, got '{server}'; an IPv6 "
            "address with a port stands in brackets"
        )
    return int(text)


def _no_host(text: str) -> str:
    return (
        f"--server must be HOST or HOST:PORT, the host a DNS name or an IP address, got '{text}'; "
        "write fl.example.org:8000, 192.0.2.7 or [2001:db8::7]:8000"
    )
