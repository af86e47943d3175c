"""What a tuning makes better: the validation loss, or tasks' figures on validation rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.experiment import Experiment
from common.metrics import METRICS
from simulations.formats import direction
from simulations.run_record import Figures, task_figures

LOSS = "loss"
_MEASURES = ("kind", "target", "classes", "metric", "transform")  # what a task's metric means
_WEIGHED = ("weight", "standardise")  # and what its part of the loss means


@dataclass(frozen=True)
class Objective:
    """A figure of validation rows.

    Attributes:
        metric: "loss", or the task's metric.
        task: "" for the weighted loss of all tasks.
    """

    metric: str
    task: str = ""

    @property
    def name(self) -> str:
        """As it is written: ``loss`` or ``digit/accuracy``."""
        return f"{self.task}/{self.metric}" if self.task else self.metric

    @property
    def label(self) -> str:
        """Its name for people, with an arrow to where it is better."""
        return f"validation {self.name} {direction(self.metric)}"

    @property
    def is_maximised(self) -> bool:
        """Whether higher is better."""
        return self.metric != LOSS and METRICS[self.metric].higher_is_better

    def figure(self, evaluation: Figures | None) -> float | None:
        """Take it out of an evaluation; None where there is none."""
        if not self.task:
            loss: float | None = ((evaluation or {}).get("validation") or {}).get(LOSS)
            return loss
        figure: float | None = task_figures(evaluation, "validation", self.task).get(self.metric)
        return figure


def parse_objectives(options: Sequence[str], experiment: Experiment) -> list[Objective]:
    """Read ``--objective`` options; the validation loss where there are none.

    Raises:
        ConfigError: one is no figure of this experiment's, or stands twice.
    """
    known = [Objective(LOSS)] + [
        Objective(metric, task)
        for task, settings in experiment.tasks.items()
        for metric in (settings.metric_name, LOSS)
    ]
    by_name = {objective.name: objective for objective in known}
    for option in options:
        if option not in by_name:
            raise ConfigError(
                f"--objective must be one of {', '.join(by_name)}, got '{option}'; for another "
                "metric, --set tasks.NAME.metric"
            )
    if len({*options}) < len(options):
        raise ConfigError("--objective names a figure twice; remove one.")
    return [by_name[option] for option in options or [LOSS]]


def require_figures(experiment: Experiment) -> None:
    """Refuse to tune where there would be no figures to judge by.

    Raises:
        ConfigError: there are no validation rows, or clients tell nothing of them.
    """
    if not experiment.data.validation and experiment.data.split != "column":
        raise ConfigError(
            "data.validation must be above 0 for tuning, which judges on validation rows, got 0; "
            "set it, as in data.validation=0.2"
        )
    if experiment.privacy.sums_regime == "withheld":
        raise ConfigError(
            "privacy.sums must not be 'withheld' for tuning, whose trials are judged by figures "
            "that clients then keep; choose another"
        )


def require_same_measure(
    experiment: Experiment, base: Experiment, objectives: Sequence[Objective]
) -> None:
    """Refuse settings whose figures mean something else than those of other trials.

    Raises:
        ConfigError: names the setting.
    """
    keys: tuple[str, ...] = _MEASURES
    if any(objective.metric == LOSS for objective in objectives):
        keys += _WEIGHED
    for name, task in base.tasks.items():
        other = experiment.tasks.get(name)
        for key in keys:
            if other is None or getattr(other, key) != getattr(task, key):
                raise ConfigError(
                    f"tasks.{name}.{key} must be the same in all trials judged by "
                    f"{' and '.join(o.name for o in objectives)}, which would mean another thing; "
                    "take it out of --space"
                    + (f", or choose --objective {name}/METRIC" if key in _WEIGHED else "")
                )
    if experiment.tasks.keys() != base.tasks.keys():
        raise ConfigError("tasks must be the same in all trials; tune other tasks on their own")


def to_json(objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """Describe objectives for tune.json."""
    return [
        {"name": o.name, "direction": "maximise" if o.is_maximised else "minimise"}
        for o in objectives
    ]
