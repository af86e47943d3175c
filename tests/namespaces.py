"""Hosts on one machine: a network namespace each, joined by a bridge, with no way out.

Every host has an address of its own in 10.77.0.0/16, its own loopback and its own ports. All of it
goes when the network is closed, and what a killed test process left behind goes when the next
network is made.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import randbelow, token_hex

PREFIX = "fm"  # of namespaces; the id of the process that made them follows
DEVICE = "eth0"  # a host's way to the others


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "hosts in network namespaces need root"
    if shutil.which("ip") is None:
        return "hosts in network namespaces need the command ip (iproute2)"
    name = f"{PREFIX}{os.getpid()}-try-{token_hex(2)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "hosts in network namespaces need the right to make one"
    ip("netns", "del", name)
    return ""


def ip(*arguments: str) -> str:
    """Run ip; its own words become the error's."""
    process = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if process.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {process.stderr.strip()}")
    return process.stdout


def descendants(roots: Sequence[int]) -> list[int]:
    """A process and all that it started, their children too."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found


def command_of(pid: int) -> str:
    """A process's command line; empty once it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def send_signal(pids: Sequence[int], what: signal.Signals) -> None:
    """Send a signal to processes; those that have gone are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, what)


def wait_until(is_so: Callable[[], object], timeout_s: float, what: str) -> None:
    """Look again and again until something is so.

    Raises:
        TimeoutError: it was not within the time.
    """
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} not within {timeout_s:.0f} s")
        time.sleep(0.1)


class Process:
    """A process on a host, with what it said."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        """Everything that it, and what it started, wrote so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; returns its exit code."""
        return self.process.wait(timeout_s)

    def wait_for(self, text: str, timeout_s: float = 60, *, after: int = 0) -> None:
        """Wait until it says something, after a place in what it said.

        Raises:
            TimeoutError: it did not, or ended before; with the end of what it said.
        """
        end = time.monotonic() + timeout_s
        while text not in self.said()[after:]:
            gone = not self.is_alive() and text not in self.said()[after:]
            if gone or time.monotonic() > end:
                why = f"ended with {self.process.returncode}" if gone else f"{timeout_s:.0f} s over"
                raise TimeoutError(f"'{text}' not said ({why}):\n{self.said()[-3000:]}")
            time.sleep(0.05)


@dataclass
class Host:
    """One host.

    Attributes:
        name: "server", "a", ...
        namespace: its network namespace.
        address: its IPv4 address.
        folder: its disk.
        environment: variables of its processes.
    """

    name: str
    namespace: str
    address: str
    folder: Path
    environment: dict[str, str]

    def __post_init__(self) -> None:
        self._started: list[Process] = []
        self.folder.mkdir(parents=True, exist_ok=True)

    def start(
        self, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a process; its output goes to `<folder>/<log>`, after what is there."""
        path = self.folder / log
        with path.open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                cwd=self.folder,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the test, which then ends its processes
            )
        self._started.append(Process(process, path))
        return self._started[-1]

    def run(
        self,
        command: Sequence[str],
        timeout_s: float = 120,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> str:
        """Run a command to its end; returns what it wrote.

        Raises:
            OSError: it failed; with what it wrote.
        """
        process = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command],
            cwd=cwd or self.folder,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if process.returncode:
            raise OSError(f"{' '.join(command)}\n{process.stdout}{process.stderr}")
        return process.stdout

    def processes(self) -> list[int]:
        """All processes on the host: those in its namespace, and all that they started."""
        inside = [int(pid) for pid in ip("netns", "pids", self.namespace).split()]
        ours = [p.pid for p in self._started if p.is_alive()]
        return descendants([*inside, *ours])

    def find(self, word: str) -> list[int]:
        """Processes whose command line holds a word."""
        return [pid for pid in self.processes() if word in command_of(pid)]

    def kill(self) -> None:
        """End all processes on the host at once, as a power cut does."""
        while pids := [pid for pid in self.processes() if command_of(pid)]:  # no zombies
            send_signal(pids, signal.SIGKILL)
            time.sleep(0.02)
        for started in self._started:
            started.wait(10)

    def traffic(self) -> tuple[int, int]:
        """Bytes received and sent so far on the host's network device, all framing counted."""
        (link,) = json.loads(ip("-n", self.namespace, "-s", "-j", "link", "show", DEVICE))
        return int(link["stats64"]["rx"]["bytes"]), int(link["stats64"]["tx"]["bytes"])

    def cut_link(self) -> None:
        """Unplug the cable."""
        ip("-n", self.namespace, "link", "set", DEVICE, "down")

    def mend_link(self) -> None:
        """Plug it in again; the address stays."""
        ip("-n", self.namespace, "link", "set", DEVICE, "up")


class Network:
    """Hosts that reach each other and nothing else; a context manager.

    Args:
        names: of the hosts.
        folder: holds a folder per host.
        environment: variables of all their processes.
    """

    def __init__(self, names: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        sweep()
        self._stem = f"{PREFIX}{os.getpid()}-{token_hex(2)}"
        self._bridge, subnet = f"{self._stem}-net", randbelow(200)
        self.hosts = {
            name: Host(
                name,
                f"{self._stem}-{name}",
                f"10.77.{subnet}.{number}",
                folder / name,
                dict(environment),
            )
            for number, name in enumerate(names, start=1)
        }
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        ip("netns", "add", self._bridge)
        ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", self._bridge, "link", "set", "br0", "up")
        for number, host in enumerate(self.hosts.values(), start=1):
            ip("netns", "add", host.namespace)
            ip("-n", host.namespace, "link", "set", "lo", "up")
            cable = ["type", "veth", "peer", "name", f"port{number}", "netns", self._bridge]
            ip("-n", host.namespace, "link", "add", DEVICE, *cable)
            ip("-n", self._bridge, "link", "set", f"port{number}", "master", "br0", "up")
            ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", DEVICE)
            ip("-n", host.namespace, "link", "set", DEVICE, "up")

    def small_disk(self, folder: Path, size_bytes: int) -> None:
        """Make a folder a disk of its own, of a size; it is empty."""
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={size_bytes},mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, self._stem, str(folder)], check=True)

    def close(self) -> None:
        """End all processes and take the hosts away; a second call does nothing."""
        for host in self.hosts.values():
            with suppress(OSError):
                host.kill()
        remove(self._stem)
        atexit.unregister(self.close)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def namespaces() -> Iterator[str]:
    """All network namespaces that have names."""
    for line in ip("netns", "list").splitlines():
        yield line.split()[0]


def remove(stem: str) -> None:
    """Take away a network's namespaces, what still runs in them, and its disks."""
    for name in namespaces():
        if name.startswith(f"{stem}-"):
            pids = [int(pid) for pid in ip("netns", "pids", name).split()]
            send_signal(descendants(pids), signal.SIGKILL)
            with suppress(OSError):
                ip("netns", "del", name)
    for source, folder in mounts():
        if source == stem:
            subprocess.run(["umount", "-l", folder], capture_output=True)


def mounts() -> Iterator[tuple[str, str]]:
    """What is mounted, and where."""
    for line in Path("/proc/mounts").read_text().splitlines():
        source, folder = line.split()[:2]
        yield source, folder


def sweep() -> None:
    """Take away what test processes that have ended left behind."""
    stems = {name.rpartition("-")[0] for name in namespaces()} | {name for name, _ in mounts()}
    for stem in stems:
        owner = stem.removeprefix(PREFIX).partition("-")[0]
        if stem.startswith(PREFIX) and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove(stem)
