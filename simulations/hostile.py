"""Hostile clients: some train as all others do, and send a trunk that they made up.

Only the trunk is wrong. The sums that a hostile client reports are honest, and so is what it keeps
at home, so that figures measure the damage and do not share in it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import CheckpointError, ConfigError
from common.seeding import sample_names
from common.wire import FloatArray
from server.checkpoint import replace_text

FACTOR = 10.0  # of "scaled"
FILE = "hostile.json"  # in the run folder


def flip_sign(before: FloatArray, update: FloatArray, factor: float) -> FloatArray:
    """Send the update backwards: ``w - u``."""
    return before - update


def scale(before: FloatArray, update: FloatArray, factor: float) -> FloatArray:
    """Send a multiple of the update: ``w + c u``."""
    return before + np.float32(factor) * update


def send_nan(before: FloatArray, update: FloatArray, factor: float) -> FloatArray:
    """Send no numbers."""
    return np.full_like(before, np.nan)


def send_again(before: FloatArray, update: FloatArray, factor: float) -> FloatArray:
    """Send an update; the caller passes that of the client's first round."""
    return before + update


Attack = Callable[[FloatArray, FloatArray, float], FloatArray]
ATTACKS: dict[str, Attack] = {
    "sign-flip": flip_sign,
    "scaled": scale,
    "nan": send_nan,
    "replayed": send_again,
}


@dataclass
class Hostile:
    """The hostile clients of one run.

    Attributes:
        attack: a key of `ATTACKS`.
        clients: their names.
        factor: of the attack "scaled".
        first: client -> the update of its first round, kept for "replayed".
    """

    attack: str
    clients: frozenset[str]
    factor: float = FACTOR
    first: dict[str, FloatArray] = field(default_factory=dict)

    @classmethod
    def draw(
        cls, attack: str, share: float, names: Sequence[str], seed: int, factor: float = FACTOR
    ) -> "Hostile":
        """Draw the hostile ones among the clients, by the run's seed.

        Raises:
            ConfigError: nobody would be hostile, or everybody.
        """
        count = round(share * len(names))
        if not 0 < count < len(names):
            raise ConfigError(
                f"--hostile must make at least one of the {len(names)} clients hostile and leave "
                f"one honest, got a share of {share:g}, which is {count}; choose another share"
            )
        return cls(attack, frozenset(sample_names(list(names), count, seed, "hostile")), factor)

    def distort(self, client: str, before: FloatArray, row: FloatArray) -> FloatArray:
        """Make up what a client sends.

        Args:
            client: its name.
            before: [Q], the trunk that it received.
            row: [Q], the trunk after its local training.

        Returns:
            [Q] what it sends: `row` itself from an honest client.
        """
        if client not in self.clients:
            return row
        update = row - before
        if self.attack == "replayed":
            update = self.first.setdefault(client, update)
        return ATTACKS[self.attack](before, update, self.factor)

    def distort_rows(
        self, clients: Sequence[str], before: FloatArray, rows: FloatArray
    ) -> FloatArray:
        """Do `distort` to the rows of several clients, [K, Q]; `rows` is left as it is."""
        sent = rows.copy()
        for place, client in enumerate(clients):
            sent[place] = self.distort(client, before, rows[place])
        return sent

    def distort_arrays(
        self, client: str, before: Mapping[str, FloatArray], after: Mapping[str, FloatArray]
    ) -> dict[str, FloatArray]:
        """Do `distort` to a trunk of named arrays."""
        flat = [_flatten(arrays, after) for arrays in (before, after)]
        sent, start, arrays = self.distort(client, *flat), 0, {}
        for name, array in after.items():
            arrays[name] = sent[start : start + array.size].reshape(array.shape)
            start += array.size
        return arrays

    def save(self, run: Path) -> None:
        """Note in the run folder who is hostile, and how."""
        about = {"attack": self.attack, "clients": sorted(self.clients), "factor": self.factor}
        replace_text(run / FILE, json.dumps(about, indent=1))

    @classmethod
    def load(cls, run: Path) -> "Hostile | None":
        """Read what `save` wrote; None where nobody is hostile.

        Raises:
            CheckpointError: it cannot be read, or the run cannot go on with it.
        """
        if not (run / FILE).exists():
            return None
        try:
            about = json.loads((run / FILE).read_text(encoding="utf-8"))
            hostile = cls(about["attack"], frozenset(about["clients"]), float(about["factor"]))
            ATTACKS[hostile.attack]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{run / FILE} cannot be read ({type(error).__name__})"
            raise CheckpointError(f"{reason}; start the run anew with another --out") from error
        if hostile.attack == "replayed":
            raise CheckpointError(
                f"{run} cannot go on: what its hostile clients send again was not kept; start it "
                "anew with another --out"
            )
        return hostile


def parse_hostile(text: str) -> tuple[str, float]:
    """Read ``ATTACK=SHARE``.

    Raises:
        ConfigError: it is not that.

    >>> parse_hostile("sign-flip=0.2")
    ('sign-flip', 0.2)
    """
    attack, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if attack not in ATTACKS or not 0 < value < 1:
        raise ConfigError(
            f"--hostile must be ATTACK=SHARE, an attack of {', '.join(ATTACKS)} and a share "
            f"between 0 and 1, as in sign-flip=0.2, got '{text}'"
        )
    return attack, value


def _flatten(arrays: Mapping[str, FloatArray], names: Mapping[str, FloatArray]) -> FloatArray:
    flat: FloatArray = np.concatenate([arrays[name].reshape(-1) for name in names])
    return flat
