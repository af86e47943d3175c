"""The form of the sums that clients send: which names each task may have, and how many numbers."""

from collections.abc import Mapping

import numpy as np

from common.experiment import Experiment
from common.metrics import METRICS
from common.model import output_width
from common.weighting.balance import FIGURES, STATE, Rules

NOT_FINITE = "is not finite; a smaller training.lr may help"


class SumsForm:
    """What the sums of one experiment look like."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        rules = Rules(experiment)
        self._weighting = dict.fromkeys((*FIGURES, *(STATE + n for n in rules.initial)), 2)

    def fault(self, task: str, numbers: Mapping[str, list[float]]) -> str | None:
        """Say what is wrong with one task's sums, or None."""
        settings = self.experiment.tasks.get(task)
        if settings is None:
            return "the experiment has no such task"
        outputs = output_width(settings, len(self.experiment.targets(task)))
        lengths = {
            "loss": 2,
            settings.metric_name: METRICS[settings.metric_name].length(outputs),
            **self._weighting,
        }
        for name, values in numbers.items():
            if len(values) != lengths.get(name):
                return f"{name} has {len(values)} numbers, expected {lengths.get(name)}"
            if not np.isfinite(values).all():
                return f"{name} {NOT_FINITE}"
        return None
