"""Checkpoints of earlier rounds that a run keeps, for predictions averaged over them.

Huang et al., "Snapshot ensembles: train 1, get M for free", ICLR 2017: models of one run, taken
where a cyclic learning rate is lowest, err in other places. Each is a checkpoint of its own, whole
or not there, with trunk, strategy, and the heads of all clients.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.errors import ConfigError
from common.experiment import Experiment
from common.wire import FloatArray
from server.checkpoint import MANIFEST, Checkpoints, KeepClients, Progress, told_where


def refuse_snapshots(experiment: Experiment, where: str) -> None:
    """Refuse to keep snapshots where the clients' heads are elsewhere.

    Raises:
        ConfigError: some are asked for.
    """
    if every := experiment.federation.snapshot_every:
        raise ConfigError(
            f"federation.snapshot-every must be 0 {where}, where heads stay with the clients and a "
            f"trunk alone predicts nothing, got {every}; use fedmtl simulate --engine loopback or "
            "batched, or remove it"
        )


class Snapshots:
    """The snapshots of one run.

    Args:
        folder: made with the first of them.
        every: keep one after each so many rounds; 0 keeps none.
        most: how many, the newest.
        keep_clients: writes the clients' own state.
    """

    def __init__(
        self,
        folder: Path,
        every: int = 0,
        most: int = 1,
        keep_clients: KeepClients | None = None,
    ) -> None:
        self.folder, self.every, self.most = folder, every, most
        self.keep_clients = keep_clients

    def rounds(self) -> list[int]:
        """List the rounds of which there is a whole snapshot, rising."""
        found = self.folder.glob(f"round-*/{MANIFEST}")
        return sorted(int(path.parent.name.removeprefix("round-")) for path in found)

    def at(self, number: int) -> Checkpoints:
        """Open the snapshot of a round."""
        keep = self.keep_clients
        return Checkpoints(self._place(number), keep and partial(keep, everybody=True))

    def take(
        self, checkpoints: Checkpoints, progress: Progress, trunk: Mapping[str, FloatArray]
    ) -> None:
        """Keep a round's state if its turn has come, and let go of the oldest.

        Args:
            checkpoints: of the run.
            progress: where it stands.
            trunk: its trunk.

        Raises:
            CheckpointError: it cannot be written.
        """
        if not self.every or progress.round % self.every:
            return
        snapshot = self.at(progress.round)
        snapshot.strategy_state = checkpoints.strategy_state
        snapshot.save(replace(progress), trunk)
        for number in self.rounds()[: -self.most]:
            self._remove(number)

    def forget_after(self, rounds: int) -> None:
        """Remove the snapshots of rounds that a resumed run does anew, and halves of any.

        Raises:
            CheckpointError: they cannot be removed.
        """
        whole = self.rounds()
        for path in self.folder.glob("round-*"):
            number = int(path.name.removeprefix("round-"))
            if number > rounds or number not in whole:
                self._remove(number)

    def _place(self, number: int) -> Path:
        return self.folder / f"round-{number:08d}"

    def _remove(self, number: int) -> None:
        place = self._place(number)
        with told_where(place):
            (place / MANIFEST).unlink(missing_ok=True)  # first, so that no half of one counts
            shutil.rmtree(place)
