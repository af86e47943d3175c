"""What becomes of an update before it leaves: clipped, and where the client adds it, with noise.

An update is what training made of the received trunk, less that trunk, over all columns that
travel; parts of tasks that the client lacks are 0 in it. One that is no number is 0 altogether.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.experiment import Experiment
from common.privacy.client_level import client_noise
from common.privacy.randomness import secret_generator
from common.wire import MAX_NORM, FloatArray, Instruction

logger = logging.getLogger("fedmtl.client")


def clip_updates(updates: FloatArray, max_norm: float) -> NDArray[np.float64]:
    """Shorten updates to a norm, in place: ``u <- u min(1, C / |u|)`` (Abadi et al. 2016).

    Args:
        updates: [K, Q]; one that is shorter stays as it is.
        max_norm: C, L2.

    Returns:
        Their norms before, float64 [K]; those whose norm is no number stay as they are.

    >>> rows = np.array([[3.0, 4.0], [0.0, 0.5]], np.float32)
    >>> clip_updates(rows, 1.0), rows.round(3)
    (array([5. , 0.5]), array([[0.6, 0.8],
           [0. , 0.5]], dtype=float32))
    """
    norms = np.empty(len(updates))
    for row, update in enumerate(updates):
        wide = update.astype(np.float64)  # float32 is too coarse for a sum of so many squares
        norms[row] = np.sqrt(wide @ wide)
        if max_norm < norms[row] < np.inf:
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
        norms = clip_updates(updates, max_norm)
        if self.privacy.client_level is not None:
            # Nothing clips what is no number, and that it is none tells of the rows: it adds 0.
            for row in np.flatnonzero(~np.isfinite(norms)).tolist():
                updates[row] = 0
                logger.warning("%s: the trunk holds NaN or infinity, nothing is sent", clients[row])
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
        # In the order of what came, as engines that have no names draw a simulation's noise.
        row, before = (
            np.concatenate([arrays[name].reshape(-1) for name in received])
            for arrays in (sent, received)
        )
        row = self.protect(row[None], before, [client], instruction)[0]
        ends = np.cumsum([array.size for array in received.values()])[:-1]
        parts = zip(received.items(), np.split(row, ends), strict=True)
        return {name: part.reshape(array.shape) for (name, array), part in parts}
