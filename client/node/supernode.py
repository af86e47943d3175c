"""Flower's SuperNode as the node's child: its flags are the operator's, its isolation is ours."""

import argparse
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.node.worker import die_with_parent
from client.state import replace_file
from common.errors import ConfigError, NodeError

logger = logging.getLogger("fedmtl.node")

OURS = ("--isolation", "--superexec-auth-secret-file")  # flags that `fedmtl node run` sets itself
QUICK_S = 15.0  # one that lives longer was able to run
# A SuperLink takes a minute to notice that a node died, and refuses the same key until then.
PATIENCE_S = 100.0
WRONG_FLAGS = 2  # exit status of argparse
SECRET = "runtime-secret"
PAUSE_S = 3.0  # before it is started again
STOP_S = 10.0  # for an orderly end


def read_flags(flags: Sequence[str]) -> argparse.Namespace:
    """Read the flags of ``flower-supernode`` that concern us; the others are Flower's business.

    Raises:
        ConfigError: one of them is ours to set, or has no value.
    """
    for flag in flags:
        if flag.split("=")[0] in OURS:
            raise ConfigError(f"{flag} must not be given: fedmtl node run sets it; remove it")
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    for name in ("--node-config", "--host", "--port", "--ssl-certfile", "--ssl-ca-certfile"):
        parser.add_argument(name)
    try:
        return parser.parse_known_args(list(flags))[0]
    except argparse.ArgumentError as error:
        raise ConfigError(f"flags of flower-supernode: {error}") from error


def read_node_config(text: str | None) -> dict[str, Any]:
    """Read ``--node-config`` as Flower does: key=value pairs, or the path of a TOML file.

    Raises:
        ConfigError: it cannot be read.
    """
    import click
    from flwr.common.config import parse_config_args

    try:
        return dict(parse_config_args([text] if text else None))
    except (OSError, ValueError, click.ClickException) as error:
        raise ConfigError(
            f"--node-config cannot be read: {error}; write it as 'data=\"FOLDER\" threads=2'"
        ) from error


class SuperNode:
    """The child process, started anew when it dies.

    Args:
        flags: as the operator gave them.
        state: the node's state folder, which keeps the secret of this start.

    Attributes:
        address: of its Runtime API, "host:port".
        secret: that it shares with whoever may take its tasks.
        certificates: of the CA behind its Runtime API; None where that is plain HTTP.
    """

    def __init__(self, flags: Sequence[str], state: Path) -> None:
        found = read_flags(flags)
        host, port = found.host or "127.0.0.1", found.port or str(_free_port())
        self.address, self.secret = f"{host}:{port}", secrets.token_hex(32).encode()
        self.certificates = None
        if found.ssl_certfile and found.ssl_ca_certfile:
            self.certificates = Path(found.ssl_ca_certfile).expanduser()
        self._secret_file = (state / SECRET).resolve()
        replace_file(self._secret_file, self.secret, private=True)
        self._command = [_executable(), *flags]
        self._command += [] if found.host else ["--host", host]
        self._command += [] if found.port else ["--port", port]
        self._command += ["--isolation", "process"]
        self._command += ["--superexec-auth-secret-file", str(self._secret_file)]
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._worked_at = time.monotonic()

    def start(self) -> None:
        """Start the process."""
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent
        )

    def watch(self) -> None:
        """Start it again where it ended.

        Raises:
            NodeError: it cannot run.
        """
        if self._process is None or self._process.poll() is None:
            return
        code, now = self._process.returncode, time.monotonic()
        if now - self._started > QUICK_S:
            self._worked_at = now
        left = PATIENCE_S - (now - self._worked_at)
        if left <= 0 or code == WRONG_FLAGS:
            raise NodeError(
                f"flower-supernode ended with exit status {code}; its own message stands above"
            )
        logger.warning(
            "flower-supernode ended with exit status %d; starting it again, for at most %.0f s",
            code,
            left,
        )
        time.sleep(PAUSE_S)
        self.start()

    def stop(self) -> None:
        """End it in order: it tells the SuperLink that the node leaves."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._secret_file.unlink(missing_ok=True)


def _executable() -> str:
    """Find the program of the environment this process runs in."""
    beside = Path(sys.executable).parent / "flower-supernode"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("flower-supernode")
    if not found:
        raise ConfigError(
            "flower-supernode is not installed beside this Python; install it: pip install flwr"
        )
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
