"""What becomes of an update before it leaves: clipped, and where the client adds it, with noise.

An update is what training made of the received trunk, less that trunk, over all columns that
travel; parts of tasks that the client lacks are 0 in it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment
from common.privacy.client_level import client_noise
from common.privacy.randomness import secret_generator
from common.wire import MAX_NORM, FloatArray, Instruction


def clip_updates(updates: FloatArray, max_norm: float) -> NDArray[np.float64]:
    """Shorten updates to a norm, in place: ``u <- u min(1, C / |u|)`` (Abadi et al. 2016).

    Args:
        updates: [K, Q]; one that is shorter stays as it is.
        max_norm: C, L2.

    Returns:
        Their norms before, float64 [K].

    >>> rows = np.array([[3.0, 4.0], [0.0, 0.5]], np.float32)
    >>> clip_updates(rows, 1.0), rows.round(3)
    (array([5. , 0.5]), array([[0.6, 0.8],
           [0. , 0.5]], dtype=float32))
    """
    norms = np.empty(len(updates))
    for row, update in enumerate(updates):
        wide = update.astype(np.float64)  # float32 is too coarse for a sum of so many squares
        norms[row] = np.sqrt(wide @ wide)
        if not norms[row] <= max_norm:  # no number, either
            update *= max_norm / norms[row]
    return norms


class Protection:
    """Clips what an experiment's clients send, and adds their noise.

    Args:
        experiment: says what is asked for.
        seed: a simulation's; None on a node of a deployment.
    """

    def __init__(self, experiment: Experiment, seed: int | None) -> None:
        self.privacy, self.seed = experiment.privacy, seed
        level = self.privacy.client_level
        secure = self.privacy.secure_aggregation is not None
        self.clips = secure or (level is not None and level.clip == "client")
        # Noise 'client' has no amplification, so how many clients there are does not matter.
        blurs = level is not None and level.noise == "client"
        self.noise_multiplier = client_noise(experiment, clients=1) if blurs else 0.0

    def max_norm(self, instruction: Instruction) -> float:
        """Get what this round's updates are clipped to.

        Only adaptive clipping, where the server is trusted with the noise, lets it decide.
        """
        level = self.privacy.client_level
        if level is not None and level.quantile is not None:
            return float(instruction.privacy[MAX_NORM])
        return self.privacy.update_norm or np.inf

    def protect(
        self,
        rows: FloatArray,
        received: FloatArray,
        clients: Sequence[str],
        instruction: Instruction,
    ) -> FloatArray:
        """Make of trained trunks what may be sent.

        Args:
            rows: [K, Q], local trunks.
            received: [Q], the trunk that they began with.
            clients: names of the K clients.
            instruction: of the round.

        Returns:
            [K, Q]; `rows` themselves where nothing is asked for.
        """
        if not self.clips:
            return rows
        updates, max_norm = rows - received, self.max_norm(instruction)
        clip_updates(updates, max_norm)
        if self.noise_multiplier:
            deviation = self.noise_multiplier * max_norm
            for update, client in zip(updates, clients, strict=True):
                noise = secret_generator(self.seed, "update", client, instruction.round)
                update += noise.normal(0.0, deviation, len(update)).astype(update.dtype)
        updates += received
        return updates

    def protect_arrays(
        self,
        sent: Mapping[str, FloatArray],
        received: Mapping[str, FloatArray],
        client: str,
        instruction: Instruction,
    ) -> Mapping[str, FloatArray]:
        """Do as `protect` with one client's named arrays."""
        if not self.clips:
            return sent
        row, before = (
            np.concatenate([arrays[name].reshape(-1) for name in sent])
            for arrays in (sent, received)
        )
        row = self.protect(row[None], before, [client], instruction)[0]
        ends = np.cumsum([array.size for array in sent.values()])[:-1]
        parts = zip(sent.items(), np.split(row, ends), strict=True)
        return {name: part.reshape(array.shape) for (name, array), part in parts}
