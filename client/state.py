"""What stays home between rounds: the client's own parameters, in Flower's `Context.state`.

Where the environment names a state folder (``FEDMTL_STATE``, or ``state`` in the node's config) the
same arrays are mirrored to disk, two generations deep: a node that restarts goes on with the heads
that belong to the trunk it is sent, even where it had already trained for a round that was lost.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast
from urllib.parse import quote

from flwr.app import ArrayRecord, ConfigRecord, Context
from safetensors.numpy import load_file, save

from common.wire import FloatArray, overwrite_arrays, pack_arrays, unpack_arrays

OWN, INFO = "own-arrays", "own-info"  # keys of the records in Context.state
GENERATIONS = 2


def load_own(
    context: Context, client: str, fingerprint: str, round_number: int
) -> dict[str, FloatArray]:
    """Read the client's own parameters as they were before a round; empty for a first time.

    They are good until `save_own` is called again.

    State in memory from this round or a later one belongs to a round that is being repeated after
    a crash of the server: then, and where memory is empty, the mirror on disk is asked.
    """
    kept_round = round_of(context)
    if kept_round is not None and kept_round < round_number:
        return unpack_arrays(cast(ArrayRecord, context.state[OWN]))
    folder = _mirror(context, client, fingerprint)
    if folder is None:
        return {}
    kept = [path for path in _generations(folder) if int(path.stem) < round_number]
    return cast(dict[str, FloatArray], load_file(kept[-1])) if kept else {}


def save_own(
    context: Context,
    client: str,
    fingerprint: str,
    round_number: int,
    arrays: Mapping[str, FloatArray],
) -> None:
    """Keep a copy of the client's own parameters as they are after a round."""
    kept, info = context.state.get(OWN), context.state.get(INFO)
    if (
        isinstance(kept, ArrayRecord)
        and isinstance(info, ConfigRecord)
        and overwrite_arrays(kept, arrays)
    ):
        info["round"] = round_number
    else:
        context.state[OWN] = pack_arrays({name: array.copy() for name, array in arrays.items()})
        context.state[INFO] = ConfigRecord({"round": round_number, "client": client})
    folder = _mirror(context, client, fingerprint)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{round_number:08d}.safetensors"
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(save(dict(arrays)))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    for old in _generations(folder)[:-GENERATIONS]:
        old.unlink()


def round_of(context: Context) -> int | None:
    """Tell after which round the state in memory is; None where there is none."""
    if INFO not in context.state:
        return None
    return cast(int, cast(ConfigRecord, context.state[INFO])["round"])


def _mirror(context: Context, client: str, fingerprint: str) -> Path | None:
    root = context.node_config.get("state") or os.environ.get("FEDMTL_STATE")
    return Path(str(root)) / fingerprint / folder_name(client) if root else None


def folder_name(client: str) -> str:
    """Spell a client's name, which may be any text, as one folder inside its parent.

    >>> folder_name("ward 7"), folder_name("a/b"), folder_name("..")
    ('ward 7', 'a%2Fb', '%2E.')
    """
    name = quote(client, safe=" ")
    return f"%2E{name[1:]}" if name.startswith(".") else name


def _generations(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
