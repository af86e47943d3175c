"""The form of the sums that clients send: which names each task may have, and how many numbers."""

from collections.abc import Mapping

import numpy as np

from common.experiment import Experiment
from common.metrics import METRICS
from common.model import output_width
from common.weighting.balance import FIGURES, STATE, Rules

NOT_FINITE = "is not finite; a smaller training.lr may help"
EPOCHS = "epochs"  # how many were done, summed over clients that may stop before all; and clients
LARGEST = 1e100  # no honest error is larger, and the squares of such sums can still be added up


class SumsForm:
    """What the sums of one experiment look like."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        rules = Rules(experiment)
        self._is_fixed = rules.is_fixed
        self._weighting = dict.fromkeys((*FIGURES, *(STATE + n for n in rules.initial)), 2)
        self._stopping = {} if experiment.training.patience is None else {EPOCHS: 2}
        # Name -> its first number that counts something, and cannot be negative; so are the rest.
        # Noise makes any figure negative, and its count is 1.
        first = int(experiment.privacy.sums_regime == "noised")
        self._counts = dict.fromkeys(METRICS, first) | dict.fromkeys(("loss", *self._weighting), 1)
        self._counts[EPOCHS] = 0

    def lengths(self, task: str, split: str) -> dict[str, int]:
        """Say which names one task's sums of a split can have, and how many numbers each."""
        if split != "train":
            return self._measured(task)
        return {"loss": 2} | ({} if self._is_fixed else self._weighting) | self._stopping

    def _measured(self, task: str) -> dict[str, int]:
        """Count the numbers of loss and metric."""
        settings = self.experiment.tasks[task]
        outputs = output_width(settings, len(self.experiment.targets(task)))
        return {"loss": 2, settings.metric_name: METRICS[settings.metric_name].length(outputs)}

    def fault(self, task: str, numbers: Mapping[str, list[float]]) -> str | None:
        """Say what is wrong with one task's sums, or None."""
        settings = self.experiment.tasks.get(task)
        if settings is None:
            return "the experiment has no such task"
        lengths = {**self._measured(task), **self._weighting, **self._stopping}
        if "loss" not in numbers:
            return "loss is missing"
        for name, values in numbers.items():
            if len(values) != lengths.get(name):
                return f"{name} has {len(values)} numbers, expected {lengths.get(name)}"
            if not np.isfinite(values).all():
                return f"{name} {NOT_FINITE}"
            if np.abs(values).max() > LARGEST:
                return f"{name} holds a number beyond {LARGEST:g}"
            if min(self._counted(name, values)) < 0:
                return f"{name} holds a negative number where it counts"
        return None

    def _counted(self, name: str, values: list[float]) -> list[float]:
        """Pick the numbers that count rows, steps or errors; of targets, "r2" has signed sums."""
        return values[:1] if name == "r2" else values[self._counts[name] :]
