"""By which figure on validation rows one trunk is better than another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.experiment import Experiment

LOSS = "loss"


@dataclass(frozen=True)
class BestBy:
    """What ``evaluation.best-by`` says.

    Attributes:
        task: whose metric decides; "" for the weighted loss of all tasks.
        metric: that metric, or "loss".
        min_delta: how much better is better.
    """

    task: str = ""
    metric: str = LOSS
    min_delta: float = 0.0

    @classmethod
    def of(cls, experiment: "Experiment") -> "BestBy":
        """Read an experiment; one that lacks the task, such as another task alone, goes by loss."""
        wanted, delta = experiment.evaluation.best_by, experiment.evaluation.min_delta
        if wanted == LOSS or wanted not in experiment.tasks:
            return cls(min_delta=delta)
        return cls(wanted, experiment.tasks[wanted].metric_name, delta)

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"validation {self.metric} of {self.task}" if self.task else "validation loss"

    @property
    def is_maximised(self) -> bool:
        """Whether high is better."""
        from common.metrics import METRICS  # which reading an experiment does without

        return bool(self.task) and METRICS[self.metric].higher_is_better

    def figure(self, validation: Mapping[str, Any]) -> float:
        """Take the figure from those of a trunk on validation rows.

        Args:
            validation: ``{"loss", "tasks": {task: {metric}}}``, as in metrics.jsonl.

        Returns:
            NaN where nobody has a row to judge by.
        """
        if not self.task:
            return float(validation["loss"])
        return float(validation["tasks"].get(self.task, {}).get(self.metric, math.nan))

    def is_better(self, figure: float, than: float | None) -> bool:
        """Tell whether a figure is better by more than ``min-delta``; NaN never is.

        >>> BestBy(min_delta=0.5).is_better(1.0, than=1.5), BestBy().is_better(1.0, than=1.5)
        (False, True)
        """
        if than is None:
            return not math.isnan(figure)
        gain = figure - than if self.is_maximised else than - figure
        return gain > self.min_delta
