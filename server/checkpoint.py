"""A run's state on disk after every round: whole or not there, and enough to go on exactly.

Every save writes files, each whole, under names that carry the round, and then replaces
``checkpoint.json``, which names the files that belong together. A process killed at any moment
leaves the previous checkpoint or the new one, never a mixture. A durable checkpoint is on the disk
itself when `save` returns, so that a power failure leaves one of the two as well.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from common.errors import CheckpointError
from common.wire import FloatArray

MANIFEST = "checkpoint.json"
BEST = "best"  # role of the best trunk's file
RESTORE = "restore it, or start the run anew with another --out"


@dataclass
class Progress:
    """What the round loop must know to go on.

    Attributes:
        fingerprint: of the experiment; a checkpoint of another one is refused.
        round: rounds done.
        elapsed_s: time they took, over all sittings.
        sent_bytes: payload sent to clients so far.
        received_bytes: payload received from clients so far.
        best: the best evaluation by all clients so far, as in metrics.jsonl.
        best_figure: the best figure so far, of ``evaluation.best-by``.
        waited: evaluations since then, of trunks that had moved.
        judged_moves: how often the trunk had moved when it was judged last.
        usable_rounds: rounds with at least one usable reply.
        skipped_rounds: rounds that lost too many replies, or had nobody to ask.
        repeats: how often a round was asked again, over all rounds.
        agreement: what the clients agreed on, as JSON.
        loss_memory: task -> name -> what loss scaling and weighting remember, for all clients.
        best_memory: the same as it was with the best trunk, where the run will return to it.
        files: role -> file name; "trunk"; "best", where the run will return to its best trunk;
            "strategy", what the strategy remembers, where it does; and what an engine keeps of its
            clients.
        run: names the run to its clients, over all sittings.
        heads_from: name of the earlier run with whose heads clients start.
        privacy: what clients have paid so far; see `server.privacy_accounts`.
    """

    fingerprint: str
    round: int = 0
    elapsed_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    best: dict[str, Any] | None = None
    best_figure: float | None = None
    waited: int = 0
    judged_moves: int = 0
    usable_rounds: int = 0
    skipped_rounds: int = 0
    repeats: int = 0
    agreement: str = ""
    loss_memory: dict[str, dict[str, float]] = field(default_factory=dict)
    best_memory: dict[str, dict[str, float]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    run: str = ""
    heads_from: str = ""
    privacy: dict[str, Any] = field(default_factory=dict)


class KeepClients(Protocol):
    """Writes an engine's client state."""

    def __call__(
        self, folder: Path, round_number: int, *, everybody: bool = False
    ) -> dict[str, str]:
        """Write into a checkpoint's folder.

        Args:
            folder: the checkpoint's.
            round_number: names the file.
            everybody: write one file with all clients, for a folder that is given no other; else
                what has changed since the last call is enough.

        Returns:
            Role -> file name, for the checkpoint.
        """


class Checkpoints:
    """The checkpoint folder of one run.

    Args:
        folder: made by the first save.
        keep_clients: writes the clients' own state, for engines that hold it.
        durable: survive a power failure, at the cost of waiting for the disk.

    Attributes:
        strategy_state: gets what the strategy remembers, by name; set once there is a strategy.
        best: the best trunk so far, where the run will return to it.
    """

    def __init__(
        self, folder: Path, keep_clients: KeepClients | None = None, durable: bool = False
    ) -> None:
        self.folder, self.keep_clients, self.durable = folder, keep_clients, durable
        self.strategy_state: Callable[[], Mapping[str, NDArray[Any]]] = dict
        self.best: Mapping[str, FloatArray] | None = None
        self._written: Mapping[str, FloatArray] | None = None  # of these, the one that is on disk

    def save(self, progress: Progress, trunk: Mapping[str, FloatArray]) -> None:
        """Write a checkpoint and remove the files of earlier ones.

        Raises:
            CheckpointError: it cannot be written; the one before is whole.
        """
        with told_where(self.folder):
            self._save(progress, trunk)

    def _save(self, progress: Progress, trunk: Mapping[str, FloatArray]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, Mapping[str, NDArray[Any]]] = {"trunk": trunk}
        if state := self.strategy_state():
            tensors["strategy"] = state
        files = {role: f"{role}-{progress.round:08d}.safetensors" for role in tensors}
        if self.best is not None:
            files[BEST] = progress.files.get(BEST, "")
            if self.best is not self._written:
                tensors[BEST] = self.best
                files[BEST] = f"{BEST}-{progress.round:08d}.safetensors"
        try:
            for role, arrays in tensors.items():
                replace_arrays(self.folder / files[role], arrays, durable=self.durable)
            if self.keep_clients is not None:
                files |= self.keep_clients(self.folder, progress.round)
            progress.files = files
            manifest = json.dumps(asdict(progress), indent=1)
            replace_text(self.folder / MANIFEST, manifest, durable=self.durable)
            self._written = self.best
        except BaseException:
            for name in {files[role] for role in tensors} - self._files_in_use():
                (self.folder / name).unlink(missing_ok=True)  # it would only fill a full disk
            raise
        for path in self.folder.iterdir():
            if path.name not in {MANIFEST, *files.values()} and path.is_file():
                path.unlink()

    def _files_in_use(self) -> set[str]:
        try:
            return set(json.loads((self.folder / MANIFEST).read_text())["files"].values())
        except (OSError, ValueError, KeyError):
            return set()

    def load_strategy(self, progress: Progress) -> dict[str, NDArray[Any]]:
        """Read what the strategy remembered; nothing where it remembers nothing.

        Raises:
            CheckpointError: it cannot be read.
        """
        if "strategy" not in progress.files:
            return {}
        return self._read(self.folder / progress.files["strategy"])

    def load_best(self, progress: Progress) -> dict[str, FloatArray] | None:
        """Read the best trunk so far; None where the run ends with its last one.

        Raises:
            CheckpointError: it cannot be read.
        """
        if BEST not in progress.files:
            return None
        self.best = self._written = self._read(self.folder / progress.files[BEST])
        return self.best

    def choose(
        self, progress: Progress, last: dict[str, FloatArray]
    ) -> tuple[dict[str, FloatArray], int]:
        """Choose the trunk that a run ends with, or would if it ended now.

        Args:
            progress: of the checkpoint.
            last: its last trunk.

        Returns:
            The best where the run returns to it, else the last; and how many rounds it has seen.
        """
        best = self.load_best(progress)
        if best is None or progress.best is None:
            return last, progress.round
        return best, int(progress.best["trunk-round"])

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = load_file(path)
            return found
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}; {RESTORE}") from error

    def load(self, fingerprint: str) -> tuple[Progress, dict[str, FloatArray]]:
        """Read the newest checkpoint.

        Raises:
            CheckpointError: there is none, it cannot be read, or it is another experiment's.
        """
        manifest = self.folder / MANIFEST
        if not manifest.exists():
            raise CheckpointError(
                f"no checkpoint in {self.folder}: the run stopped before anything was kept; "
                "start it anew with another --out"
            )
        try:
            progress = Progress(**json.loads(manifest.read_text()))
            if progress.fingerprint == fingerprint:
                for file in progress.files.values():
                    with safe_open(self.folder / file, framework="numpy"):
                        pass  # there, and as long as its header says
                return progress, load_file(self.folder / progress.files["trunk"])
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{manifest}, or a file that it names, cannot be read: {error}; {RESTORE}"
            ) from error
        raise CheckpointError(
            f"{manifest} belongs to another experiment (fingerprint {progress.fingerprint}, "
            f"this one is {fingerprint}); resume with the settings it was started with, the rounds "
            "included where privacy shares an epsilon out over them"
        )


@contextmanager
def told_where(path: Path) -> Iterator[None]:
    """Turn a failure to write, such as a full disk, into an error that names the place."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise CheckpointError(
            f"{path} cannot be written: {reason}; make room or correct its permissions, then go on "
            f"with fedmtl simulate --resume, or in a deployment with {resume_command(path.parent)}"
        ) from error


def resume_command(run_folder: Path) -> str:
    """Write the command that goes on with a deployed run."""
    return f"""flwr run . SUPERLINK --stream -c 'resume="{run_folder.name}"'"""


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a file so that readers, and a crash, see the old content or the new one.

    Args:
        path: the file.
        text: its new content.
        durable: let a power failure, too, leave one of the two; once this returns, the new one.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        if durable:
            write_through(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if durable:
        write_through(path.parent)


def replace_arrays(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    metadata: dict[str, str] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Write arrays as `replace_text` writes text: what a checkpoint names is never half written.

    The last evaluation may add to what was written after the last round, under the same name.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(dict(arrays), partial, metadata=metadata)
        if durable:
            write_through(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # it would only fill a full disk
        raise


def write_through(path: Path) -> None:
    """Wait until a file, or which files a folder holds, is on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
