"""What figures leave a client: sums as they are, with noise, or none; and how rows are counted."""

from collections.abc import Mapping

import numpy as np

from common.experiment import Experiment
from common.privacy.randomness import secret_generator
from common.sums_form import EPOCHS, LARGEST
from common.weighting.balance import FIGURES, STATE
from common.wire import SplitSums

LOSS_ROWS = 1  # place of the count in "loss"


class Discretion:
    """Makes of a client's sums what may be sent.

    Args:
        experiment: says what is asked for.
        seed: a simulation's; None on a node of a deployment.
    """

    def __init__(self, experiment: Experiment, seed: int | None) -> None:
        self.privacy, self.seed = experiment.privacy, seed
        self.regime = self.privacy.sums_regime
        self.is_idle = self.regime == "sent" and self.privacy.smallest_group == 1

    def reduce(
        self, sums: SplitSums, trained: Mapping[str, int], client: str, *stream: str | int
    ) -> SplitSums:
        """Suppress, blur or withhold.

        Args:
            sums: of one reply.
            trained: task -> labelled training rows, however often they were passed over.
            client: its name.
            stream: names the reply's noise in a simulation.

        Returns:
            What is sent. With noise every figure is ``[mean + noise, 1]``: each client counts once.
        """
        if self.regime == "withheld":
            return {}
        if self.regime == "noised":
            return self._blur(sums, client, *stream)
        return self.suppress(sums, trained)

    def suppress(self, sums: SplitSums, trained: Mapping[str, int]) -> SplitSums:
        """Leave out tasks, split by split, of which a client has fewer labelled rows than asked."""
        smallest = self.privacy.smallest_group

        def rows(split: str, task: str) -> float:
            count = sums[split][task]["loss"][LOSS_ROWS]
            return trained.get(task, 0) if split == "train" else count

        return {
            split: {task: own for task, own in tasks.items() if rows(split, task) >= smallest}
            for split, tasks in sums.items()
        }

    def _blur(self, sums: SplitSums, client: str, *stream: str | int) -> SplitSums:
        """Clip the reply's mean figures together, and add noise to each (Gaussian mechanism)."""
        places = [
            (split, task, name)
            for split, tasks in sums.items()
            for task, own in tasks.items()
            for name in own
            if name not in (*FIGURES, EPOCHS) and not name.startswith(STATE)
        ]
        figures = np.array([_mean(sums[split][task][name]) for split, task, name in places])
        longest, norm = self.privacy.sums_max_norm, float(np.sqrt((figures**2).sum()))
        if norm > longest:
            figures *= longest / norm
        deviation = (self.privacy.sums_noise_multiplier or 0.0) * longest
        noise = secret_generator(self.seed, "sums", client, *stream)
        figures += noise.normal(0.0, deviation, len(figures))
        blurred: SplitSums = {}
        for (split, task, name), figure in zip(places, figures.tolist(), strict=True):
            blurred.setdefault(split, {}).setdefault(task, {})[name] = [figure, 1.0]
        return blurred

    def examples(self, rows: int) -> int:
        """Say how many rows a client counts as."""
        return rows if self.privacy.counts == "sent" else 1


def _mean(pair: list[float]) -> float:
    """Divide a sum by its count; 0 where nothing was counted, or where training has diverged."""
    total, count = pair
    mean = total / count if count else 0.0
    return float(np.clip(mean, -LARGEST, LARGEST)) if np.isfinite(mean) else 0.0
