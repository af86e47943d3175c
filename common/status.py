"""What a server or a node says of itself on disk, for `fedmtl health` and whoever else looks.

``status.json`` is replaced as a whole at every change and every few seconds while its process
waits, so that a reader can tell one that works from one that hangs or is gone.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.locking import is_held

FILE, LOCK = "status.json", "lock"
WAITING, TRAINING, DONE, FAILED = STATES = ("waiting", "training", "done", "failed")
NODE_MAX_AGE_S = 60.0
BEAT_S = 5.0  # how often a status is renewed while nothing changes


@dataclass
class Status:
    """What is said.

    Attributes:
        what: "server" or "node".
        state: one of `STATES`.
        run: names the run, as its clients know it; empty before there is one.
        round: rounds done.
        rounds: rounds of the experiment; 0 where it is not known.
        updated: when this was said, seconds since 1970.
        max_age_s: after how long without a new one it is stale.
        pid: the process.
        version: of this package.
        error: what went wrong last, in one line; empty where nothing did.
    """

    what: str
    state: str = WAITING
    run: str = ""
    round: int = 0
    rounds: int = 0
    updated: float = 0.0
    max_age_s: float = NODE_MAX_AGE_S
    pid: int = 0
    version: str = ""
    error: str = ""


class StatusFile:
    """Keeps a folder's status.json; a failure to write is passed over.

    Args:
        folder: a server's run folder, or a node's state folder.
        status: the first one.
        clock: seconds that only ever go forward.
    """

    def __init__(
        self, folder: Path, status: Status, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self.status, self.clock = folder / FILE, status, clock
        self._written_at = -BEAT_S
        self.set()

    def set(self, **changes: Any) -> None:
        """Change some of its fields, and write it."""
        for name, value in changes.items():
            setattr(self.status, name, value)
        self.status.updated, self.status.pid = time.time(), os.getpid()
        self.status.version = self.status.version or _own_version()
        self._written_at = self.clock()
        partial = self.path.with_name(f"{FILE}.{self.status.pid}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(asdict(self.status), indent=1), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def beat(self) -> None:
        """Renew it, if the last time is a while ago."""
        if self.clock() - self._written_at >= BEAT_S:
            self.set()


@dataclass(frozen=True)
class Health:
    """What a status means.

    Attributes:
        status: as it was read.
        is_healthy: whether its process works, or has done all it had to.
        age_s: how old it is.
        reason: why it is not healthy; empty where it is.
    """

    status: Status
    is_healthy: bool
    age_s: float
    reason: str

    def line(self) -> str:
        """Say it in one line."""
        status = self.status
        rounds = f", round {status.round}" + (f" of {status.rounds}" if status.rounds else "")
        run = f" {status.run}" if status.run else ""
        verdict = "healthy" if self.is_healthy else f"not healthy: {self.reason}"
        age = f"{max(0.0, self.age_s):.0f} s ago"
        return f"{status.what}{run}: {verdict} ({status.state}{rounds}, {age})"

    def to_json(self) -> dict[str, Any]:
        """Say it for machines."""
        return {
            "healthy": self.is_healthy,
            "reason": self.reason,
            "age-s": self.age_s,
            **{key.replace("_", "-"): value for key, value in asdict(self.status).items()},
        }


def read_status(folder: Path) -> Status:
    """Read a folder's status; a field that this version does not know is passed over.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Status)}
        status = Status(**{name: content[name] for name in names & content.keys()})
        if status.state not in STATES:
            raise ValueError("unknown state")
        status.updated, status.max_age_s = float(status.updated), float(status.max_age_s)
        return status
    except FileNotFoundError:
        raise ConfigError(
            f"PATH must be a server's run folder or a node's state folder, got {folder}: it has no "
            f"{FILE}; name the folder of a deployed run, or a node's state"
        ) from None
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__}); it is written anew when its server "
            "or node is started"
        ) from None


def judge(folder: Path, max_age_s: float | None = None) -> Health:
    """Read a folder's status and say what it means.

    Args:
        folder: a server's run folder, or a node's state folder.
        max_age_s: after how long a status is stale; by default, what it says itself.

    Raises:
        ConfigError: there is no status, or it cannot be read.
    """
    status = read_status(folder)
    age = time.time() - status.updated
    limit = status.max_age_s if max_age_s is None else max_age_s
    reason = ""
    if status.state == FAILED:
        reason = status.error or "it failed"
    elif status.state != DONE and _is_gone(folder, status):
        reason = "its process is gone"
    elif status.state != DONE and age > limit:
        reason = f"it has said nothing for {age:.0f} s, {limit:.0f} s are allowed"
    return Health(status, not reason, age, reason)


def _is_gone(folder: Path, status: Status) -> bool:
    """Tell whether a process let go of its folder without a word, as when it is killed."""
    path = folder / LOCK
    try:
        return path.exists() and not is_held(path)
    except OSError:
        return False


def _own_version() -> str:
    try:
        return version("fedmtl")
    except PackageNotFoundError:
        return "unknown"
