"""What stays home between rounds: the client's own parameters, above all its heads.

Of a simulated node they live in Flower's `Context.state`, which the simulation checkpoints. A
deployed node's would be lost with its next restart, without a word: it needs a state folder
(``state`` in the node's config, or ``FEDMTL_STATE``). There they live on disk alone, by run and
round, so that the round after a restart is the round of a node that never died::

    <state>/runs/<run>/<client>/own-00000003.safetensors   what stays home, after round 3
    <state>/runs/<run>/<client>/trunk.safetensors          the last trunk received
    <state>/runs/<run>/<client>/run.json                   experiment and agreement of the run
    <state>/runs/<run>/<client>/fitted.json                scalings of the client's own rows

Every file is replaced whole. Two rounds are kept: a server that resumes from its checkpoint may ask
for the last one again, and then the heads from before it are taken.
"""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import quote

from flwr.app import ArrayRecord, ConfigRecord, Context
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from client.own_arrays import BEST
from client.place import Place
from common.algorithms import CONTROL
from common.errors import StateError
from common.wire import FloatArray, overwrite_arrays, pack_arrays, unpack_arrays

logger = logging.getLogger("fedmtl.client")

VARIATES = f"kept.{CONTROL}."  # begins the names of a client's control variates
OWN, INFO = "own-arrays", "own-info"  # keys of the records in Context.state
GENERATIONS = 2
# In the config of every simulated node; a real one that has it may go without a state folder.
SIMULATED = "partition-id"
OWN_FILE = re.compile(r"own-(\d{8,})\.safetensors")
TRUNK_FILE, RUN_FILE, FITTED_FILE = "trunk.safetensors", "run.json", "fitted.json"


class OwnState(Protocol):
    """Where one client's own parameters are kept."""

    def load(self, before: int) -> dict[str, FloatArray]:
        """Read them as they were before a round; empty for a first time."""

    def save(self, round_number: int, arrays: Mapping[str, FloatArray]) -> None:
        """Keep them as they are after a round."""


@dataclass(frozen=True)
class MemoryState:
    """Keeps them in Flower's `Context.state`, as long as the node's process lives."""

    context: Context
    client: str

    def load(self, before: int) -> dict[str, FloatArray]:
        """Read them as they were before a round; they are good until `save` is called again.

        State of this round or a later one belongs to a round that is being repeated after a crash
        of the server, and is not what the client had before it.
        """
        kept_round = round_of(self.context)
        if kept_round is None:
            return {}
        if kept_round >= before:
            logger.warning(
                "round %d is asked again and its heads were kept in memory only: starting new ones",
                before,
            )
            return {}
        return unpack_arrays(cast(ArrayRecord, self.context.state[OWN]))

    def save(self, round_number: int, arrays: Mapping[str, FloatArray]) -> None:
        """Keep a copy."""
        kept, info = self.context.state.get(OWN), self.context.state.get(INFO)
        if (
            isinstance(kept, ArrayRecord)
            and isinstance(info, ConfigRecord)
            and overwrite_arrays(kept, arrays)
        ):
            info["round"] = round_number
            return
        copies = {name: array.copy() for name, array in arrays.items()}
        self.context.state[OWN] = pack_arrays(copies)
        self.context.state[INFO] = ConfigRecord({"round": round_number, "client": self.client})


@dataclass(frozen=True)
class FolderState:
    """Keeps them on disk.

    Attributes:
        folder: of one client in one run.
        earlier: the client's folder of the run whose heads it starts from; None for new heads.
    """

    folder: Path
    earlier: Path | None = None

    def load(self, before: int) -> dict[str, FloatArray]:
        """Read them as they were before a round.

        Raises:
            StateError: what was kept cannot be read; going on would silently start anew.
        """
        there = _generations(self.folder)
        kept = [path for number, path in there if number < before]
        if there and not kept and before > 1:
            logger.warning(
                "round %d is asked, and %s has heads of later rounds only: starting new ones",
                before,
                self.folder,
            )
        if not kept and self.earlier is not None:
            kept = [path for _, path in _generations(self.earlier)]
            if not kept:
                logger.warning("no heads of the earlier run in %s: starting new ones", self.earlier)
                return {}
            # A new run's server starts its control variate at 0, which is their mean only at 0.
            # Nor is there a best trunk yet that something could be set aside for.
            arrays = _read(kept[-1])
            return {n: a for n, a in arrays.items() if not n.startswith((VARIATES, BEST))}
        return _read(kept[-1]) if kept else {}

    def save(self, round_number: int, arrays: Mapping[str, FloatArray]) -> None:
        """Write them, and remove all but the last rounds.

        Raises:
            StateError: they cannot be written; what was kept before is whole.
        """
        target = self.folder / f"own-{round_number:08d}.safetensors"
        replace_file(target, save(dict(arrays)), durable=True)
        # Those of later rounds are of a run that went back further; they are written over in time,
        # and must not push out the ones that were just written.
        done = [path for number, path in _generations(self.folder) if number <= round_number]
        for old in done[:-GENERATIONS]:
            old.unlink(missing_ok=True)

    def save_trunk(self, round_number: int, trunk: Mapping[str, FloatArray]) -> None:
        """Keep the trunk received last, for predictions.

        Args:
            round_number: how many rounds it has seen.
            trunk: its arrays.

        Raises:
            StateError: it cannot be written.
        """
        content = save(dict(trunk), metadata={"round": str(round_number)})
        replace_file(self.folder / TRUNK_FILE, content)

    def save_run(self, run: Mapping[str, Any], fitted: str) -> None:
        """Write once what the run is about, and by what new rows are encoded for it.

        Args:
            run: what ``run.json`` is to hold.
            fitted: what encoding learned from the training rows, as JSON.

        Raises:
            StateError: it cannot be written, or a run of this name was of another experiment, whose
                heads would come with what they hold of rows.
        """
        if (self.folder / RUN_FILE).exists():
            kept = json.loads((self.folder / RUN_FILE).read_text()).get("fingerprint")
            given = run.get("fingerprint")
            if kept not in (None, given):
                raise StateError(
                    f"run '{run['run']}' had another experiment before, of fingerprint {kept}, got "
                    f"{given}; a run keeps its experiment, start another one"
                )
        else:
            replace_file(self.folder / FITTED_FILE, fitted.encode(), durable=True)
            content = json.dumps(run, indent=1).encode()
            replace_file(self.folder / RUN_FILE, content, durable=True)


def open_state(context: Context, client: str, run: str, heads_from: str = "") -> OwnState:
    """Open where a client's own parameters are kept.

    Args:
        context: Flower's, of the node.
        client: its stable name.
        run: name of the run.
        heads_from: name of the earlier run whose heads it starts from.

    Raises:
        StateError: there is no state folder where one is needed.
    """
    require_state(context)
    root = _root(context)
    if root:
        runs = Path(root) / "runs"
        earlier = runs / folder_name(heads_from) / folder_name(client) if heads_from else None
        return FolderState(runs / folder_name(run) / folder_name(client), earlier)
    if heads_from:
        raise StateError(
            f"heads-from '{heads_from}' needs a node that keeps its heads on disk, and this one "
            "has no state folder; name one: --node-config 'state=\"FOLDER\"'"
        )
    return MemoryState(context, client)


def require_state(context: Context) -> None:
    """Check that a deployed node's heads have somewhere to live.

    Raises:
        StateError: they have not.
    """
    if not _root(context) and SIMULATED not in context.node_config:
        raise StateError(
            "this node has no state folder, so a restart would lose its heads; name one: "
            "--node-config 'state=\"FOLDER\"'"
        )


def ledger_folder(context: Context) -> Path | None:
    """Name the state folder where a deployed node's ledger is; a simulation keeps its clients'."""
    root = _root(context)
    return Path(root) if root and not Place.of(context.node_config).simulated else None


def _root(context: Context) -> str:
    return str(context.node_config.get("state") or os.environ.get("FEDMTL_STATE") or "")


def round_of(context: Context) -> int | None:
    """Tell after which round the state in memory is; None where there is none."""
    if INFO not in context.state:
        return None
    return cast(int, cast(ConfigRecord, context.state[INFO])["round"])


def folder_name(name: str) -> str:
    """Spell a client's or a run's name, which may be any text, as one folder inside its parent.

    >>> folder_name("ward 7"), folder_name("a/b"), folder_name("..")
    ('ward 7', 'a%2Fb', '%2E.')
    """
    quoted = quote(name, safe=" ") or "%"
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def replace_file(
    path: Path, content: bytes, *, durable: bool = False, private: bool = False
) -> None:
    """Write a file so that a crash leaves the old content or the new one, whole.

    Args:
        path: the file; folders above it are made, for the owner's eyes only.
        content: what it is to hold.
        durable: whether it must survive a loss of power from now on.
        private: whether others on the machine must not read it, wherever it lies.

    Raises:
        StateError: it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if private:
            partial.unlink(missing_ok=True)  # another's file or link would keep its own permissions
        with open(partial, "wb", opener=_open_private if private else None) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        partial.replace(path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StateError(
            f"state: {path} cannot be written: {error.strerror or error}; make room or correct its "
            "permissions. What was kept before is whole"
        ) from error


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, mode=0o600)


def sync_folder(folder: Path) -> None:
    """Make a renaming last; where folders cannot be opened, the system sees to it itself."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> dict[str, FloatArray]:
    try:
        with safe_open(path, framework="numpy"):
            pass  # there, and as long as its header says
        return cast(dict[str, FloatArray], load_file(path))
    except (OSError, SafetensorError) as error:
        raise StateError(
            f"state: {path} cannot be read: {error}; restore it, or remove it to start with the "
            "heads of the round before, or with new ones"
        ) from error


def _generations(folder: Path) -> list[tuple[int, Path]]:
    """List the rounds kept, and their files, oldest first."""
    if not folder.is_dir():
        return []
    matched = ((OWN_FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matched if match)
