"""What a simulation's clients keep at home, on disk after every round.

A round changes the clients that took part in it, so a round appends one file with theirs; when the
files hold twice as many entries as there are clients, one file with everybody's replaces them. The
checkpoint names the files that belong together (`server.checkpoint`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import safe_open

from client.own_arrays import as_of_best
from common.wire import FloatArray
from server.checkpoint import replace_arrays


@dataclass(frozen=True)
class Own:
    """One client's own parameters after a round."""

    round: int
    arrays: Mapping[str, FloatArray]


def as_of(own: Own, number: int) -> Own:
    """Get what a client kept when the trunk after so many rounds was there, last or best."""
    return Own(own.round, as_of_best(own.arrays, number))


@dataclass
class ClientLog:
    """The files written so far.

    Attributes:
        files: file name -> number of entries, oldest first.
    """

    files: dict[str, int] = field(default_factory=dict)

    def append(
        self,
        folder: Path,
        round_number: int,
        changed: Mapping[str, Own],
        everybody: Callable[[], Mapping[str, Own]],
        clients: int,
    ) -> dict[str, str]:
        """Write a round's changes, or everything where that is due.

        Args:
            folder: the checkpoint's folder.
            round_number: names the file.
            changed: client -> its state, for those that the round changed.
            everybody: gives that of all clients that have any.
            clients: number of clients of the federation.

        Returns:
            Role -> file name, oldest first, for the checkpoint.
        """
        name = f"clients-{round_number:08d}.safetensors"
        # What was written for the same round before must not be lost with its file.
        if name in self.files or sum(self.files.values()) + len(changed) > 2 * clients:
            self.files, changed = {}, everybody()
        write_clients(folder / name, changed)
        self.files[name] = len(changed)
        return {f"clients-{place:06d}": name for place, name in enumerate(self.files)}

    def restore(self, folder: Path, files: Mapping[str, str]) -> dict[str, Own]:
        """Read what a checkpoint names; client -> its newest state."""
        newest: dict[str, Own] = {}
        self.files = {}
        for role in sorted(role for role in files if role.startswith("clients-")):
            entries = read_clients(folder / files[role])
            self.files[files[role]] = len(entries)
            newest |= entries
        return newest


def write_everybody(
    folder: Path, round_number: int, everybody: Mapping[str, Own]
) -> dict[str, str]:
    """Write all clients' states as the one file of a folder; returns role -> file name."""
    name = f"clients-{round_number:08d}.safetensors"
    write_clients(folder / name, everybody)
    return {"clients-000000": name}


def write_clients(path: Path, entries: Mapping[str, Own]) -> None:
    """Write clients' states: those with parameters of the same names and shapes as one matrix."""
    groups: dict[tuple[tuple[str, tuple[int, ...]], ...], list[str]] = {}
    for client, own in entries.items():
        key = tuple((name, array.shape) for name, array in own.arrays.items())
        groups.setdefault(key, []).append(client)
    tensors, about = {}, []
    for place, (layout, clients) in enumerate(groups.items()):
        for number, (name, _) in enumerate(layout):
            stacked = np.stack([entries[client].arrays[name] for client in clients])
            tensors[f"{place}/{number}"] = stacked
        names = [name for name, _ in layout]
        rounds = [entries[client].round for client in clients]
        about.append({"names": names, "clients": clients, "rounds": rounds})
    replace_arrays(path, tensors, {"groups": json.dumps(about)})


def read_clients(path: Path) -> dict[str, Own]:
    """Read what `write_clients` wrote."""
    entries: dict[str, Own] = {}
    with safe_open(path, framework="numpy") as file:
        for place, group in enumerate(json.loads((file.metadata() or {})["groups"])):
            stacks = [
                (name, file.get_tensor(f"{place}/{number}"))
                for number, name in enumerate(group["names"])
            ]
            for row, (client, rounds) in enumerate(
                zip(group["clients"], group["rounds"], strict=True)
            ):
                entries[client] = Own(rounds, {name: stack[row] for name, stack in stacks})
    return entries
